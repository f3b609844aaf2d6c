package ntguest

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

// patience bounds waiting for other packages' guests to end; a guest boots in a second.
const patience = 30 * time.Minute

// attempts is how often a guest is started: as with other guests of two processors under QEMU 7.2's TCG, one did not come
// up on a machine under load, and a test that boots a guest is not about that.
const attempts = 3

// Boot boots a guest that ends with the test. It skips the test where there are no layouts or no tools.
func Boot(t testing.TB, layout string, o *Options) *Guest {
	t.Helper()
	if testing.Short() {
		vmtest.Skip(t, "it boots a guest", "without -short")
	}
	need(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	g, err := Start(ctx, layout, o)
	for n := 1; err != nil && n < attempts && ctx.Err() == nil; n++ {
		t.Logf("attempt %d of %d: %v", n, attempts, err)
		g, err = Start(ctx, layout, o)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Errorf("end guest: %v", err)
		}
	})
	return g
}

func need(t testing.TB) {
	t.Helper()
	if _, err := DataDir(); errors.Is(err, ErrNoData) {
		vmtest.Skip(t, err.Error(), "with that folder, which has the layouts of real builds")
	}
	for _, tool := range []string{"gcc", "ld", "objcopy", program} {
		if _, err := exec.LookPath(tool); err != nil {
			vmtest.Skip(t, err.Error(), "with gcc, binutils and qemu-system-x86 installed")
		}
	}
}
