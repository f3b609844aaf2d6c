// Command gen packs the layouts of NT kernels into the file that package
// layouts carries. It reads a folder of files BUILD-ARCH.json, each
//
//	{"build": "6.1.7601.17514", "arch": "x86", "structs": {NAME: {"size": N, "fields": {NAME: offset or [offset, bits]}}}}
//
// which the project does not hold; without -from and VITRINE_NT_LAYOUTS it
// leaves the file as it is and says so.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

func main() {
	from := flag.String("from", os.Getenv("VITRINE_NT_LAYOUTS"), "`folder` of layouts")
	to := flag.String("o", "layouts.bin.gz", "`file` to write")
	flag.Parse()
	if *from == "" {
		fmt.Fprintln(os.Stderr, "layouts: neither -from nor VITRINE_NT_LAYOUTS tells where the layouts are; nothing changed")
		return
	}
	if err := run(*from, *to); err != nil {
		log.Fatal(err)
	}
}

type source struct {
	Build   string
	Arch    string
	Structs map[string]struct {
		Size   uint64
		Fields map[string]json.RawMessage
	}
}

func run(from, to string) error {
	files, err := filepath.Glob(filepath.Join(from, "*.json"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("list layouts in %s: %d files, %w", from, len(files), err)
	}
	slices.Sort(files)
	p := &packer{number: map[string]uint64{}, known: map[string]uint64{}}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var s source
		if err := json.Unmarshal(b, &s); err != nil {
			return fmt.Errorf("read %s: %w", f, err)
		}
		if err := p.add(&s); err != nil {
			return fmt.Errorf("read %s: %w", f, err)
		}
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(p.bytes()); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return os.WriteFile(to, out.Bytes(), 0o644)
}

// packer collects names and structures, each once.
type packer struct {
	names   []string
	number  map[string]uint64 // of a name
	structs [][]byte
	known   map[string]uint64 // number of a packed structure
	builds  [][]byte
}

func (p *packer) name(s string) uint64 {
	n, ok := p.number[s]
	if !ok {
		n = uint64(len(p.names))
		p.names = append(p.names, s)
		p.number[s] = n
	}
	return n
}

func (p *packer) add(s *source) error {
	b := binary.AppendUvarint(nil, p.name(s.Build))
	b = binary.AppendUvarint(b, map[string]uint64{"x64": 1}[s.Arch])
	b = binary.AppendUvarint(b, uint64(len(s.Structs)))
	for _, name := range slices.Sorted(maps.Keys(s.Structs)) {
		t := s.Structs[name]
		packed := binary.AppendUvarint(nil, p.name(name))
		packed = binary.AppendUvarint(packed, t.Size)
		packed = binary.AppendUvarint(packed, uint64(len(t.Fields)))
		for _, f := range slices.Sorted(maps.Keys(t.Fields)) {
			at, err := place(t.Fields[f])
			if err != nil {
				return fmt.Errorf("%s.%s: %w", name, f, err)
			}
			packed = binary.AppendUvarint(packed, p.name(f))
			packed = binary.AppendUvarint(packed, at[0])
			packed = binary.AppendUvarint(packed, at[1])
		}
		n, ok := p.known[string(packed)]
		if !ok {
			n = uint64(len(p.structs))
			p.structs = append(p.structs, packed)
			p.known[string(packed)] = n
		}
		b = binary.AppendUvarint(b, n)
	}
	p.builds = append(p.builds, b)
	return nil
}

// place reads an offset, or an offset and a number of bits.
func place(raw json.RawMessage) ([2]uint64, error) {
	var at [2]uint64
	if err := json.Unmarshal(raw, &at[0]); err == nil {
		return at, nil
	}
	return at, json.Unmarshal(raw, &at)
}

func (p *packer) bytes() []byte {
	b := binary.AppendUvarint(nil, uint64(len(p.names)))
	for _, n := range p.names {
		b = binary.AppendUvarint(b, uint64(len(n)))
		b = append(b, n...)
	}
	for _, list := range [][][]byte{p.structs, p.builds} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, x := range list {
			b = append(b, x...)
		}
	}
	return b
}
