//go:build !linux

package nap

import "time"

// Sleep sleeps for d, rounded up to what the system's timers can.
func Sleep(d time.Duration) { time.Sleep(d) }
