package event

import (
	"fmt"
	"strconv"
)

// Addr is a guest address, physical or virtual. Its JSON form is a string,
// "0x" and lower-case hex digits without leading zeros.
type Addr uint64

// String returns the address as in JSON, without the quotes.
func (a Addr) String() string { return string(a.append(nil)) }

func (a Addr) append(b []byte) []byte {
	return strconv.AppendUint(append(b, "0x"...), uint64(a), 16)
}

// MarshalText implements encoding.TextMarshaler.
func (a Addr) MarshalText() ([]byte, error) { return a.append(nil), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes what MarshalText
// writes, and nothing else but upper-case digits and leading zeros.
func (a *Addr) UnmarshalText(b []byte) error {
	if len(b) < 3 || b[0] != '0' || b[1] != 'x' {
		return fmt.Errorf("parse address %q: no 0x prefix", b)
	}
	v, err := strconv.ParseUint(string(b[2:]), 16, 64)
	if err != nil {
		return fmt.Errorf("parse address %q: %w", b, err)
	}
	*a = Addr(v)
	return nil
}
