package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

// Exit statuses. They are a contract: docs/commands says so.
const (
	exitDone          = 0
	exitFailed        = 1
	exitUsage         = 2
	exitNotFound      = 3
	exitNotUnderstood = 4
	exitSignal        = 128 // plus the signal's number
)

// usageError is wrong use of the command line.
type usageError struct {
	err  error
	line string // how the command is used, empty when not known
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...)}
}

// exitCode returns the exit status for what run returned and the signal that
// was caught, nil for none. A signal that came when the work was done already
// (err is nil) changes nothing. A reader that closed our output has had
// enough: that is success. Both hold only when nothing else went wrong: a
// guest that could not be left as it was must be told of.
func exitCode(err error, sig os.Signal) int {
	var usage *usageError
	switch {
	case err == nil, readerLeft(err) && endOnly(err):
		return exitDone
	case sig != nil && errors.Is(err, context.Canceled) && endOnly(err):
		if n, ok := sig.(syscall.Signal); ok {
			return exitSignal + int(n)
		}
		return exitFailed
	case errors.As(err, &usage), errors.Is(err, app.ErrTarget), errors.Is(err, app.ErrUnknownCall):
		return exitUsage
	case errors.Is(err, vitrine.ErrNotFound):
		return exitNotFound
	case errors.Is(err, vitrine.ErrNotUnderstood):
		return exitNotUnderstood
	}
	return exitFailed
}

// joined is the type of errors that are several, each with a cause of its own.
var joined = reflect.TypeOf(errors.Join(errors.ErrUnsupported))

// endOnly reports whether err says nothing but that we were told to end: by a
// signal, or by a reader that left. Of joined errors each has to.
func endOnly(err error) bool {
	if reflect.TypeOf(err) == joined {
		all, _ := err.(interface{ Unwrap() []error })
		return !slices.ContainsFunc(all.Unwrap(), func(e error) bool { return !endOnly(e) })
	}
	if inner, ok := err.(interface{ Unwrap() error }); ok { //nolint:errorlint // it is the tree that is walked
		return endOnly(inner.Unwrap())
	}
	return errors.Is(err, context.Canceled) || readerLeft(err)
}

// message is err for people: with what to do about it, where we know.
func message(err error) string {
	var b strings.Builder
	b.WriteString(quoteLines(err.Error()))
	var usage *usageError
	if errors.As(err, &usage) {
		b.WriteString("\nusage: " + usage.line + "\n'vitrine --help' lists the commands, 'vitrine COMMAND --help' explains one.")
	}
	for _, h := range app.Hints(err) {
		b.WriteString("\n  " + h)
	}
	return b.String()
}

func stack() string { return string(debug.Stack()) }
