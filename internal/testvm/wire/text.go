package wire

import (
	"encoding/json"
	"fmt"
)

// Text is bytes that are mostly text. In JSON it is a string with one character, U+0000 to U+00FF, for each byte: base64
// would hide from the compressor that one process's record is much like the next one's.
type Text []byte

// MarshalJSON implements json.Marshaler. Nil is null.
func (t Text) MarshalJSON() ([]byte, error) {
	if t == nil {
		return []byte("null"), nil
	}
	const hex = "0123456789abcdef"
	out := make([]byte, 0, len(t)+len(t)/8+2)
	out = append(out, '"')
	for _, b := range t {
		switch {
		case b == '"' || b == '\\':
			out = append(out, '\\', b)
		case b == '\n':
			out = append(out, '\\', 'n')
		case b < 0x20 || b == 0x7f:
			out = append(out, '\\', 'u', '0', '0', hex[b>>4], hex[b&15])
		case b < 0x80:
			out = append(out, b)
		default: // two bytes of UTF-8
			out = append(out, 0xc0|b>>6, 0x80|b&0x3f)
		}
	}
	return append(out, '"'), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Text) UnmarshalJSON(text []byte) error {
	var s *string
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	if s == nil {
		*t = nil
		return nil
	}
	b := make(Text, 0, len(*s))
	for _, r := range *s {
		if r > 0xff {
			return fmt.Errorf("parse text: character %q is no byte", r)
		}
		b = append(b, byte(r))
	}
	*t = b
	return nil
}
