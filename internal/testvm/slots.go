package testvm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"
)

// turn is this process's right to run guests. A process that has one guest may start more under the same right: were
// each guest to need one, two processes that want two each could wait for each other for ever.
var turn struct {
	sync.Mutex
	users int
	file  *os.File
}

// slots returns how many processes may run guests at once on this machine: $VITRINE_TEST_VMS, else one for each CPU.
func slots() (int, error) {
	text := os.Getenv("VITRINE_TEST_VMS")
	if text == "" {
		return runtime.NumCPU(), nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("VITRINE_TEST_VMS is %q: want a number from 1 on", text)
	}
	return n, nil
}

// enter waits for this process's turn to run guests; leave gives it back. The turn ends with the process at the latest.
func enter(ctx context.Context) error {
	turn.Lock()
	defer turn.Unlock()
	if turn.users == 0 {
		f, err := takeSlot(ctx)
		if err != nil {
			return err
		}
		turn.file = f
	}
	turn.users++
	return nil
}

func leave() error {
	turn.Lock()
	defer turn.Unlock()
	turn.users--
	if turn.users > 0 {
		return nil
	}
	return turn.file.Close()
}

func takeSlot(ctx context.Context) (*os.File, error) {
	n, err := slots()
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	for {
		for i := range n {
			l, err := tryLock(filepath.Join(cache, "slot"+strconv.Itoa(i)+".lock"))
			if err != nil {
				return nil, err
			}
			if l != nil {
				return l, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for one of %d users of guests to end (VITRINE_TEST_VMS sets the number): %w", n, ctx.Err())
		case <-time.After(100 * time.Millisecond): // flock(2) cannot wait for one of several
		}
	}
}

// Enter waits for this process's turn to run guests, for guests that another package starts. The function that it
// returns, to be called once, gives the turn back.
func Enter(ctx context.Context) (func() error, error) {
	if err := enter(ctx); err != nil {
		return nil, err
	}
	return leave, nil
}
