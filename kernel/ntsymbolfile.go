package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/isf"
	"github.com/vitrine-vmi/vitrine/kernel/internal/pdb"
	"github.com/vitrine-vmi/vitrine/kernel/internal/vmlinux"
)

// maxSymbolFile bounds a symbol file, packed or not.
const maxSymbolFile = 256 << 20

// symbolFile is a symbol file that was read, and which image it says it is of.
type symbolFile struct {
	exactSymbols
	guid string
	age  uint32
	isf  *isf.File // nil for a PDB
}

// openSymbols reads a symbol file of either format.
func openSymbols(name string) (*symbolFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, len(vmlinux.Magic))
	if n, _ := io.ReadFull(f, head); string(head[:n]) == vmlinux.Magic { // of Linux, and larger
		v, err := vmlinux.Open(name)
		if err != nil {
			return nil, err
		}
		return &symbolFile{exactSymbols: v, isf: v}, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSymbolFile+1))
	if err != nil {
		return nil, err
	}
	return parseSymbols(b)
}

func parseSymbols(b []byte) (*symbolFile, error) {
	switch {
	case len(b) > maxSymbolFile:
		return nil, fmt.Errorf("larger than %d bytes", maxSymbolFile)
	case bytes.HasPrefix(b, []byte(pdb.Magic)):
		f, err := pdb.Parse(b)
		if err != nil {
			return nil, err
		}
		return &symbolFile{f, f.GUID, f.Age, nil}, nil
	case bytes.HasPrefix(b, []byte("MSCF")):
		return nil, fmt.Errorf("a compressed PDB (.pd_): unpack it with expand or cabextract first: %w", errors.ErrUnsupported)
	}
	f, err := isf.Parse(b)
	if err != nil {
		return nil, err
	}
	return &symbolFile{f, f.GUID, f.Age, f}, nil
}

// useSymbolFile takes the first symbol file of the user's that is of exactly
// this kernel, and tells of those that are not.
func (b *ntBuilder) useSymbolFile(ctx context.Context) {
	opts := b.d.opts
	if len(opts.Symbols) == 0 && opts.SymbolServer == "" {
		return
	}
	b.d.progress("reading symbols")
	for _, name := range b.symbolFiles() {
		f, err := openSymbols(name)
		if errors.Is(err, fs.ErrNotExist) && b.inStore(name) {
			continue
		}
		if err == nil {
			err = b.fits(f)
		}
		if err != nil {
			b.k.lacks(fmt.Sprintf("symbol file %s: %v", name, err))
			continue
		}
		b.useSymbols(f, name)
		return
	}
	if opts.SymbolServer != "" {
		if err := b.download(ctx); err != nil {
			b.k.lacks(fmt.Sprintf("symbols from %s: %v", opts.SymbolServer, err))
		}
	}
}

// storeNames are the places in a symbol store at which a kernel's symbols may
// be: as symbol servers have PDBs, and as Volatility has ISF files.
func (b *ntBuilder) storeNames() []string {
	if b.nt.PDB == "" || strings.ContainsAny(b.nt.PDB, `/\`) {
		return nil
	}
	key := fmt.Sprintf("%s-%d", b.nt.GUID, b.nt.PDBAge)
	stem := strings.TrimSuffix(b.nt.PDB, ".pdb")
	return []string{
		filepath.Join(b.nt.PDB, b.k.buildID, b.nt.PDB),
		filepath.Join(b.nt.PDB, key+".json.xz"), filepath.Join(b.nt.PDB, key+".json"),
		filepath.Join("windows", b.nt.PDB, key+".json.xz"), filepath.Join("windows", b.nt.PDB, key+".json"),
		stem + "-" + key + ".isf.json.xz", stem + "-" + key + ".json.xz", b.nt.PDB,
	}
}

// symbolFiles lists the files that the user's options name, those in folders
// by the name that the kernel gives.
func (b *ntBuilder) symbolFiles() []string {
	var out []string
	for _, p := range b.d.opts.Symbols {
		if st, err := os.Stat(p); err != nil || !st.IsDir() {
			out = append(out, p)
			continue
		}
		names := b.storeNames()
		if names == nil {
			names = looseFiles(p)
		}
		for _, n := range names {
			out = append(out, filepath.Join(p, n))
		}
	}
	return out
}

// maxLoose bounds how many files of a folder are tried one after the other.
const maxLoose = 16

// looseFiles lists the symbol files right in a folder: without the name that
// the kernel gives all that can be done is try.
func looseFiles(dir string) []string {
	var out []string
	for _, pattern := range []string{"nt*.json", "nt*.json.xz", "nt*.pdb"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, f := range found {
			out = append(out, filepath.Base(f))
		}
	}
	return out[:min(len(out), maxLoose)]
}

// inStore reports whether a file is one that a folder might have, not one that
// the user has named.
func (b *ntBuilder) inStore(name string) bool {
	for _, p := range b.d.opts.Symbols {
		if p == name {
			return false
		}
	}
	return true
}

// minAgreeing is how many names a symbol file must have at the same address
// when the kernel does not tell the GUID of its symbols. A triage dump knows
// three, of which a debug block may be elsewhere.
const minAgreeing = 2

// fits returns why a symbol file is not of this kernel, nil if it is: by GUID
// and age, or where the kernel does not tell them by its exports.
func (b *ntBuilder) fits(f *symbolFile) error {
	if b.nt.GUID != "" {
		if !strings.EqualFold(f.guid, b.nt.GUID) || f.age != b.nt.PDBAge {
			return fmt.Errorf("it is of %s-%d, the kernel has %s-%d: refused", f.guid, f.age, b.nt.GUID, b.nt.PDBAge)
		}
		return nil
	}
	known := map[string]arch.GVA{}
	for _, s := range b.names {
		known[s.Name] = s.Addr
	}
	agree, differ := 0, ""
	f.Symbols(func(name string, rva uint32) {
		at, ok := known[name]
		switch {
		case !ok:
		case at == b.k.base+arch.GVA(rva):
			agree++
		case differ == "":
			differ = name
		}
	})
	if differ != "" || agree < minAgreeing {
		return fmt.Errorf("the kernel tells no GUID, and of its symbols %d agree (%q does not): refused", agree, differ)
	}
	return nil
}

// useSymbols takes a file that fits.
func (b *ntBuilder) useSymbols(f *symbolFile, name string) {
	b.extra, b.exactBy = f, "symbols "+filepath.Base(name)
	n := 0
	f.Symbols(func(name string, rva uint32) {
		if n++; uint64(rva) < b.nt.ImageSize {
			b.names = append(b.names, Symbol{Name: name, Addr: b.k.base + arch.GVA(rva), Type: 'T'})
		}
	})
	by := fmt.Sprintf("%d in %s", n, filepath.Base(name))
	if have := b.k.facts["symbols"]; have != "" {
		by = have + ", " + by
	}
	b.k.fact("symbols", by)
	b.finishSymbols()
}

// download asks the symbol server that the user named.
func (b *ntBuilder) download(ctx context.Context) error {
	if b.nt.PDB == "" {
		return errors.New("the kernel does not tell which it needs")
	}
	at, err := url.JoinPath(b.d.opts.SymbolServer, b.nt.PDB, b.k.buildID, b.nt.PDB)
	if err != nil {
		return err
	}
	b.d.progress("asking the symbol server")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", at, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxSymbolFile+1))
	if err != nil {
		return fmt.Errorf("get %s: %w", at, err)
	}
	f, err := parseSymbols(body)
	if err == nil {
		err = b.fits(f)
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", at, err)
	}
	b.useSymbols(f, b.nt.PDB)
	return b.keep(body)
}

// keep puts a downloaded file into the first folder among the user's symbols,
// as a symbol store has it.
func (b *ntBuilder) keep(body []byte) error {
	for _, dir := range b.d.opts.Symbols {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			continue
		}
		name := filepath.Join(dir, b.storeNames()[0])
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("keep symbols: %w", err)
		}
		temp := name + ".part"
		err := os.WriteFile(temp, body, 0o644)
		if err == nil {
			err = os.Rename(temp, name)
		}
		if err != nil {
			return fmt.Errorf("keep symbols: %w", err)
		}
		return nil
	}
	return nil
}
