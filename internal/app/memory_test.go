package app

import (
	"testing"
)

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]address{
		"0x10":                {offset: 16},
		"4096":                {offset: 4096},
		"0xffffffff81000000":  {offset: 0xffffffff81000000},
		"linux_banner":        {symbol: "linux_banner"},
		"linux_banner+0x10":   {symbol: "linux_banner", offset: 16},
		"init_task-8":         {symbol: "init_task", offset: ^uint64(7)},
		"__pfx_x.cold.3+1":    {symbol: "__pfx_x.cold.3", offset: 1},
		"a+1+2":               {symbol: "a+1", offset: 2},
		".text":               {symbol: ".text"},
		"0xffffffffffffffff":  {offset: ^uint64(0)},
		"name+0xffffffffffff": {symbol: "name", offset: 0xffffffffffff},
	} {
		if got, err := parseAddress(in); err != nil || got != want {
			t.Errorf("parseAddress(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "+1", "-1", "a+", "a+x", "0xg", "1x", "0x1ffffffffffffffff"} {
		if got, err := parseAddress(in); err == nil {
			t.Errorf("parseAddress(%q) = %+v, want an error", in, got)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	f.Add("linux_banner+0x10")
	f.Add("0x")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAddress(s)
		if err != nil && a != (address{}) {
			t.Fatalf("parseAddress(%q) = %+v and %v", s, a, err)
		}
	})
}

func TestMemoryOptionsRefuseSymbolsElsewhere(t *testing.T) {
	for _, o := range []MemoryOptions{{Addr: "init_task", Physical: true}, {Addr: "init_task", Process: true, PID: 1}} {
		if err := o.Check(); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
	for _, o := range []MemoryOptions{{Addr: "init_task"}, {Addr: "16", Physical: true}} {
		if err := o.Check(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
