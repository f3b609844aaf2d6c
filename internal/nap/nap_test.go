package nap

import (
	"testing"
	"time"
)

func TestSleep(t *testing.T) {
	const d = 3 * time.Millisecond
	start := time.Now()
	for range 10 { // signals cut some short
		Sleep(d)
	}
	if took := time.Since(start); took < d {
		t.Errorf("ten sleeps of %v took %v", d, took)
	}
}

func BenchmarkSleep(b *testing.B) {
	for b.Loop() {
		Sleep(20 * time.Microsecond)
	}
}
