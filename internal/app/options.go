package app

import "time"

// Options are the options with which a guest is opened. A nil *Options is the
// zero value.
type Options struct {
	// CacheDir is where facts about kernels are kept between runs, "" for no
	// cache. What is found there is checked against the guest.
	CacheDir string
	// Wait is how long to wait for a guest that is still booting. Zero means no
	// longer than it takes to see that nothing has booted.
	Wait time.Duration
	// WaitThere is how long to wait for a guest that does not exist yet. Zero
	// means that it is not found.
	WaitThere time.Duration
	// Layout says how a target that is a file of raw memory is laid out (see
	// dump.ParseLayout); "" means that its content tells what a file is.
	Layout string
	// Symbols and SymbolServer are those of kernel.Options, for Windows guests and
	// for kernels without BTF.
	Symbols      []string
	SymbolServer string
	// Progress, if not nil, is told the step that begins.
	Progress func(step string)
}

func (o *Options) step(name string) {
	if o != nil && o.Progress != nil {
		o.Progress(name)
	}
}

// wait returns how long kernel.Describe shall wait, which takes 0 as a default
// of its own.
func (o *Options) wait() time.Duration {
	if o.Wait <= 0 {
		return -1
	}
	return o.Wait
}

func (o *Options) orDefault() *Options {
	if o == nil {
		return &Options{}
	}
	return o
}
