package rsp

import (
	"bytes"
	"errors"
	"fmt"
)

// MaxPacket bounds the payload of a packet that is received. QEMU's own limit
// is 4096 bytes of text, and twice that for escaped binary data.
const MaxPacket = 64 << 10

// Errors of framing.
var (
	// ErrChecksum is returned when a packet's checksum does not fit and a
	// repetition could not be had.
	ErrChecksum = errors.New("gdbstub packet with a wrong checksum")
	// ErrTooLong is returned when a packet does not end within MaxPacket.
	ErrTooLong = errors.New("gdbstub packet too long")
)

const hexDigits = "0123456789abcdef"

// AppendPacket appends the frame of a payload, which must not contain any of
// $ # } *: requests to QEMU are plain text.
func AppendPacket(dst []byte, payload string) []byte {
	dst = append(dst, '$')
	dst = append(dst, payload...)
	sum := checksum([]byte(payload))
	return append(dst, '#', hexDigits[sum>>4], hexDigits[sum&15])
}

func checksum[T string | []byte](p T) byte {
	var sum byte
	for i := range len(p) {
		sum += p[i]
	}
	return sum
}

// token is what cut found at the start of a stream.
type token uint8

const (
	tokenNone    token = iota // nothing complete yet
	tokenPacket               // a packet; the payload is still escaped
	tokenBad                  // a packet with a wrong checksum
	tokenAck                  // +
	tokenNack                 // -
	tokenGarbage              // bytes between packets that mean nothing
)

// cut splits the first token off a stream. It returns what it is, its payload
// (a part of in), and how many bytes of in it takes. It returns ErrTooLong when
// a packet cannot end within the limit any more.
func cut(in []byte) (token, []byte, int, error) {
	if len(in) == 0 {
		return tokenNone, nil, 0, nil
	}
	switch in[0] {
	case '+':
		return tokenAck, nil, 1, nil
	case '-':
		return tokenNack, nil, 1, nil
	case '$', '%': // % is a notification: framed alike
	default:
		n := bytes.IndexAny(in, "+-$%")
		if n < 0 {
			n = len(in)
		}
		return tokenGarbage, nil, n, nil
	}
	end := bytes.IndexByte(in, '#')
	switch {
	case end < 0 && len(in) > MaxPacket, end > MaxPacket:
		return tokenNone, nil, 0, ErrTooLong
	case end < 0, len(in) < end+3:
		return tokenNone, nil, 0, nil
	}
	payload := in[1:end]
	hi, lo := unhex(in[end+1]), unhex(in[end+2])
	switch {
	case hi < 0 || lo < 0 || byte(hi<<4|lo) != checksum(payload):
		return tokenBad, nil, end + 3, nil
	case in[0] == '%':
		return tokenGarbage, nil, end + 3, nil
	}
	return tokenPacket, payload, end + 3, nil
}

// unescape decodes escapes (}) and run lengths (*) in place where there are any.
func unescape(p []byte) ([]byte, error) {
	if bytes.IndexByte(p, '}') < 0 && bytes.IndexByte(p, '*') < 0 {
		return p, nil
	}
	out := make([]byte, 0, len(p))
	for i := 0; i < len(p); i++ {
		switch {
		case p[i] == '}':
			if i++; i == len(p) {
				return nil, errors.New("gdbstub packet ends in an escape")
			}
			out = append(out, p[i]^0x20)
		case p[i] == '*':
			if i++; i == len(p) || p[i] < 29 || p[i] > 126 || len(out) == 0 {
				return nil, fmt.Errorf("gdbstub packet with a wrong run length")
			}
			out = append(out, bytes.Repeat(out[len(out)-1:], int(p[i])-29)...)
			if len(out) > MaxPacket {
				return nil, ErrTooLong
			}
		default:
			out = append(out, p[i])
		}
	}
	return out, nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
