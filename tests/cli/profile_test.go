package cli_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/vitrine-vmi/vitrine/kernel"
)

// imageWithoutBTF takes the type information out of an image: that is not
// understood, and what is said leads to a profile, by which it is.
func imageWithoutBTF(t *testing.T, path string) {
	want := mustRun(t, "ps", "--json", path)
	k, blob, off := btfOf(t, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := blob[:24]
	if _, err := f.WriteAt(make([]byte, len(head)), off); err != nil {
		t.Fatal(err)
	}
	defer f.WriteAt(head, off)
	r := run(t, "ps", path)
	for _, says := range []string{"--symbols", "dwarf2json", "linux-image-" + k.Release() + "-dbg", k.BuildID()} {
		if r.status != 4 || !strings.Contains(r.stderr, says) {
			t.Errorf("without BTF: status %d, not said: %s\n%s", r.status, says, r.stderr)
		}
	}
	dir := t.TempDir()
	profile, other := filepath.Join(dir, k.Release()+".json"), filepath.Join(dir, "other.json")
	writeProfile(t, profile, blob, k.Banner()+"\n\x00")
	writeProfile(t, other, blob, "Linux version 6.1.0-other\n\x00")
	for _, name := range []string{profile, dir} {
		if got := mustRun(t, "ps", "--json", "--symbols", name, path); got != want {
			t.Errorf("by profile %s:\n%s\nwith BTF\n%s", name, got, want)
		}
	}
	if out := mustRun(t, "info", "--symbols", profile, path); !strings.Contains(out, "profile "+filepath.Base(profile)) {
		t.Errorf("info does not tell of the profile:\n%s", out)
	}
	if r := run(t, "ps", "--symbols", other, path); r.status != 4 {
		t.Errorf("with another kernel's profile: status %d\n%s", r.status, r.stderr)
	}
}

// btfOf returns an image's kernel, its BTF, and where that is in the file.
func btfOf(t *testing.T, path string) (k *kernel.Kernel, blob []byte, off int64) {
	t.Helper()
	c := openCore(t, path)
	g, k := openImage(t, path)
	defer g.Close()
	start, err := k.Symbol("__start_BTF")
	stop, err2 := k.Symbol("__stop_BTF")
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	pa, err := k.AddressSpace().Translate(start.Addr)
	if err != nil {
		t.Fatal(err)
	}
	blob = make([]byte, stop.Addr-start.Addr)
	if _, err := k.AddressSpace().Read(blob, start.Addr); err != nil {
		t.Fatal(err)
	}
	for _, r := range c.ram {
		if uint64(pa) >= r.Paddr && uint64(pa) < r.Paddr+r.Filesz {
			return k, blob, int64(r.Off + uint64(pa) - r.Paddr)
		}
	}
	t.Fatalf("%v is not in the image", pa)
	return nil, nil, 0
}

type object = map[string]any

// profile is ISF in the making.
type profile struct {
	base, user, enums object
	names             map[btf.Type]string // of those without one of their own
}

// writeProfile writes the types of a kernel as dwarf2json writes them.
func writeProfile(t *testing.T, path string, blob []byte, banner string) {
	t.Helper()
	spec, err := btf.LoadSpecFromReader(strings.NewReader(string(blob)))
	if err != nil {
		t.Fatal(err)
	}
	p := &profile{object{"pointer": object{"size": 8}}, object{}, object{}, map[btf.Type]string{}}
	for typ, err := range spec.All() {
		if err != nil {
			t.Fatal(err)
		}
		if typ.TypeName() != "" {
			p.add(typ)
		}
	}
	b, err := json.Marshal(object{
		"metadata": object{"format": "6.2.0"}, "base_types": p.base, "user_types": p.user, "enums": p.enums,
		"symbols": object{"linux_banner": object{"address": 1, "constant_data": []byte(banner)}},
	})
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// add adds a type that has members; of namesakes the first one.
func (p *profile) add(typ btf.Type) {
	name := p.name(typ)
	switch typ := typ.(type) {
	case *btf.Struct:
		p.addMembers(name, typ.Size, typ.Members)
	case *btf.Union:
		p.addMembers(name, typ.Size, typ.Members)
	case *btf.Enum:
		if p.enums[name] == nil {
			constants := object{}
			for _, v := range typ.Values {
				constants[v.Name] = int64(v.Value)
			}
			p.enums[name] = object{"size": typ.Size, "constants": constants}
		}
	}
}

func (p *profile) addMembers(name string, size uint32, members []btf.Member) {
	if p.user[name] != nil {
		return
	}
	fields := object{}
	p.user[name] = object{"size": size, "fields": fields}
	for i, m := range members {
		f := object{"offset": m.Offset / 8, "type": p.reference(m.Type)}
		if m.BitfieldSize > 0 {
			f["type"] = object{"kind": "bitfield", "bit_position": m.Offset % 8, "bit_length": m.BitfieldSize, "type": p.reference(m.Type)}
		}
		label := m.Name
		if label == "" {
			label, f["anonymous"] = fmt.Sprint("unnamed_field_", i), true
		}
		fields[label] = f
	}
}

// name is the type's, or one that is made up.
func (p *profile) name(typ btf.Type) string {
	if typ.TypeName() != "" {
		return typ.TypeName()
	}
	if p.names[typ] == "" {
		p.names[typ] = fmt.Sprint("unnamed_", len(p.names))
	}
	return p.names[typ]
}

// reference is how a member or a pointer tells of a type.
func (p *profile) reference(typ btf.Type) object {
	switch typ := btf.UnderlyingType(typ).(type) {
	case *btf.Struct:
		p.add(typ)
		return object{"kind": "struct", "name": p.name(typ)}
	case *btf.Union:
		p.add(typ)
		return object{"kind": "union", "name": p.name(typ)}
	case *btf.Enum:
		p.add(typ)
		return object{"kind": "enum", "name": p.name(typ)}
	case *btf.Pointer:
		if btf.UnderlyingType(typ.Target).TypeName() == "" {
			return object{"kind": "pointer", "subtype": object{"kind": "base", "name": "void"}}
		}
		return object{"kind": "pointer", "subtype": p.reference(typ.Target)}
	case *btf.Array:
		return object{"kind": "array", "count": typ.Nelems, "subtype": p.reference(typ.Type)}
	case *btf.Int:
		p.base[typ.Name] = object{"size": typ.Size}
		return object{"kind": "base", "name": typ.Name}
	}
	return object{"kind": "base", "name": "void"}
}
