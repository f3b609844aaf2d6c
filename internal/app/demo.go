package app

import (
	"context"
	"fmt"
	"io"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
)

// Demo is a throw-away guest for the demonstration.
type Demo struct {
	vm *testvm.VM
}

// demoScript is the guest's first process: a small system with something to
// look at. Nothing in it knows of Vitrine.
const demoScript = `
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
for m in $(cat /lib/modules/modules.order); do insmod /lib/modules/$m.ko; done
mkdir -p /var/log /srv/shop
echo "welcome" > /srv/shop/index.html
echo "0" > /srv/shop/orders
touch /var/log/shop.log
# A "shop" that reads its pages, looks for one that is not there, and logs.
cat > /srv/shop/server.sh <<'SHOP'
n=0
while :; do
	read -r page < /srv/shop/index.html
	[ -e /srv/shop/promo.html ]
	read -r promo 2>/dev/null < /srv/shop/promo.html
	n=$((n + 1))
	echo "$n" > /srv/shop/orders
	echo "order $n" >> /var/log/shop.log
	/bin/busybox sleep 0.2
done
SHOP
/bin/bash /srv/shop/server.sh shop &
/usr/bin/tail -f /var/log/shop.log > /dev/null &
busybox nice -n 10 /bin/sh -c 'while :; do /bin/sed -n 1p /etc/passwd > /dev/null; sleep 0.5; done' &
# On a busy host programs take their time to start.
while [ "$(cat /srv/shop/orders)" = 0 ]; do sleep 0.1; done
echo "` + testvm.ScriptReady + `" > /dev/console
while :; do sleep 60; done
`

// StartDemo boots a guest of the given name. What it needs and does not find
// (QEMU, a guest kernel) it fetches where that takes no rights, and names
// otherwise. Close ends the guest.
func StartDemo(ctx context.Context, name string, progress io.Writer) (*Demo, error) {
	vm, err := testvm.Boot(ctx, &testvm.Options{
		Name: name, Kernel: "6.1-cloud", CPUs: 2, Script: demoScript, Progress: progress,
	})
	if err != nil {
		return nil, fmt.Errorf("boot the demonstration's guest: %w", err)
	}
	return &Demo{vm: vm}, nil
}

// Target returns the target string of the guest.
func (d *Demo) Target() string { return "qmp:" + d.vm.QMP }

// Name returns the guest's name.
func (d *Demo) Name() string { return d.vm.Name }

// Command returns the command that started it.
func (d *Demo) Command() []string { return d.vm.Command }

// Close ends the guest and removes what it left on the host.
func (d *Demo) Close() error { return d.vm.Close() }
