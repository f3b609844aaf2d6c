package probe

import "fmt"

// PanicError is returned by Session.Run when a callback panicked. The guest
// has been cleaned and runs.
type PanicError struct {
	Func  string // the probed function
	Value any    // what the callback panicked with
	Stack []byte // the callback's stack, as runtime/debug.Stack prints it
}

// Error tells the function and the value, not the stack.
func (e *PanicError) Error() string {
	return fmt.Sprintf("callback on %s: panic: %v", e.Func, e.Value)
}

// Unwrap returns the value where the callback panicked with an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}
