package qemu

import (
	"context"
	"sync"

	"github.com/vitrine-vmi/vitrine"
)

var _ vitrine.Pauser = (*machine)(nil)

// Pause implements vitrine.Pauser by the monitor's stop and cont. A guest that
// does not run is left as it is, by Pause and by resume.
func (m *machine) Pause(ctx context.Context) (resume func() error, err error) {
	state, err := m.runState(ctx)
	if err != nil {
		return nil, err
	}
	if state != "running" {
		return func() error { return nil }, nil
	}
	// The command may have been carried out although its answer did not come.
	resume = sync.OnceValue(func() error { return m.execute(context.Background(), "cont", nil, nil) })
	if err := m.execute(ctx, "stop", nil, nil); err != nil {
		_ = resume() // the error of stop tells more
		return nil, err
	}
	return resume, nil
}
