package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestPicture(t *testing.T) {
	in := "$ vitrine\r\n\r| waiting (1 s)\r\x1b[K\x1b[1mPID\x1b[0m <a&b>\n\n\x1b[31mENOENT\x1b[0m\x1b[2m dim\n"
	var b bytes.Buffer
	if err := draw(&b, parse(in)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`<tspan>$ vitrine</tspan>`, `<tspan font-weight="bold">PID</tspan><tspan> &lt;a&amp;b&gt;</tspan>`,
		`<tspan fill="#ff7b72">ENOENT</tspan><tspan opacity="0.6"> dim</tspan>`,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("lacks %s:\n%s", want, &b)
		}
	}
	if strings.Contains(b.String(), "waiting") {
		t.Errorf("shows what was overwritten:\n%s", &b)
	}
}

func FuzzPicture(f *testing.F) {
	f.Add("\x1b[1;31mx\x1b[0m\r\n\x1b[")
	f.Fuzz(func(t *testing.T, s string) {
		var b bytes.Buffer
		if err := draw(&b, parse(s)); err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(&b); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%q: %v", s, err)
			}
		}
	})
}
