package testvm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// apt is a private configuration of Debian's package tools for one suite: own lists, own cache, own sources. Of the
// machine's configuration it takes the mirror's address, proxies and credentials.
type apt struct {
	dir      string
	suite    string
	arch     string // Debian's name of the processor that packages are for
	mirror   string
	progress io.Writer
}

func newApt(suite, arch string, progress io.Writer) (*apt, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "apt-config", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("this needs a Debian machine: %w", err)
		}
	}
	if !exists(keyring) {
		return nil, fmt.Errorf("no Debian keys at %s: apt-get install debian-archive-keyring", keyring)
	}
	mirror, err := findMirror("/etc/apt")
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	name := suite
	if arch != amd64 {
		name += "-" + arch
	}
	a := &apt{dir: filepath.Join(cache, "apt", name), suite: suite, arch: arch, mirror: mirror, progress: progress}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "etc/parts"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	return a, a.configure()
}

// configure writes the configuration. Parts of the machine's are not read (they may hold hooks that act on the machine's
// own cache), but for what concerns the network.
func (a *apt) configure() error {
	network, err := networkConfig()
	if err != nil {
		return err
	}
	conf := fmt.Sprintf(`Dir::State %q;
Dir::State::lists %q;
Dir::State::status %q;
Dir::Cache %q;
Dir::Etc::sourcelist %q;
Dir::Etc::sourceparts "-";
Dir::Etc::parts %q;
Dir::Etc::main "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "-";
Dir::Log "/dev/null";
APT::Architecture %q;
APT::Architectures:: %q;
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
%s`,
		a.dir, a.dir+"/lists", a.dir+"/status", a.dir+"/cache", a.dir+"/etc/sources.list", a.dir+"/etc/parts", a.arch, a.arch, network)
	list := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, a.mirror, a.suite)
	return errors.Join(
		os.WriteFile(a.dir+"/apt.conf", []byte(conf), 0o600),
		os.WriteFile(a.dir+"/etc/sources.list", []byte(list), 0o600),
		os.WriteFile(a.dir+"/status", nil, 0o600),
	)
}

// networkConfig returns the lines of the machine's configuration on proxies and checks.
func networkConfig() (string, error) {
	out, err := exec.Command("apt-config", "dump").Output()
	if err != nil {
		return "", fmt.Errorf("read apt configuration: %w", err)
	}
	var keep strings.Builder
	for line := range strings.Lines(string(out)) {
		for _, prefix := range []string{"Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::ForceIPv"} {
			if strings.HasPrefix(line, prefix) {
				keep.WriteString(line)
			}
		}
	}
	return keep.String(), nil
}

func (a *apt) command(ctx context.Context, tool string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = append(os.Environ(), "APT_CONFIG="+a.dir+"/apt.conf", "LC_ALL=C")
	return cmd
}

func (a *apt) update(ctx context.Context) error {
	fmt.Fprintf(a.progress, "reading the package list of Debian %s\n", a.suite)
	out, err := a.command(ctx, "apt-get", "-q", "update", "--error-on=any").CombinedOutput()
	if err != nil {
		return fmt.Errorf("read the package list of Debian %s from %s: %w\n%s", a.suite, hideUser(a.mirror), err, tail(out, 12))
	}
	return nil
}

// newest returns the package that matches and has the highest version.
func (a *apt) newest(ctx context.Context, pattern string) (pkg, version string, err error) {
	out, err := a.command(ctx, "apt-cache", "pkgnames").Output()
	if err != nil {
		return "", "", fmt.Errorf("list packages of Debian %s: %w", a.suite, err)
	}
	names, err := match(string(out), pattern)
	if err != nil {
		return "", "", err
	}
	for _, name := range names {
		v, err := a.version(ctx, name)
		if err != nil {
			return "", "", err
		}
		// The archive may keep several ABI versions under names of their own.
		if pkg == "" || newer(v, name, version, pkg) {
			pkg, version = name, v
		}
	}
	if pkg == "" {
		return "", "", fmt.Errorf("debian %s at %s has no package %s any more", a.suite, hideUser(a.mirror), pattern)
	}
	return pkg, version, nil
}

func (a *apt) version(ctx context.Context, pkg string) (string, error) {
	out, err := a.command(ctx, "apt-cache", "policy", pkg).Output()
	if err != nil {
		return "", fmt.Errorf("ask version of %s: %w", pkg, err)
	}
	for line := range strings.Lines(string(out)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Candidate: "); ok && v != "(none)" {
			return v, nil
		}
	}
	return "", nil
}

// newer compares by Debian's own order.
func newer(v1, n1, v2, n2 string) bool {
	if v1 == v2 {
		return n1 > n2
	}
	return exec.Command("dpkg", "--compare-versions", v1, "gt", v2).Run() == nil
}

// unpack downloads a package and unpacks its files into tree, which it makes; nothing is installed.
func (a *apt) unpack(ctx context.Context, pkg, tree string) error {
	into := tree + "." + pkg
	if err := os.MkdirAll(into, 0o755); err != nil {
		return err
	}
	fmt.Fprintf(a.progress, "downloading %s\n", pkg)
	cmd := a.command(ctx, "apt-get", "-q", "download", pkg)
	cmd.Dir = into
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("download %s: %w\n%s", pkg, err, tail(out, 12))
	}
	deb, err := one(into, "*.deb")
	if err != nil {
		return err
	}
	fmt.Fprintf(a.progress, "unpacking %s\n", filepath.Base(deb))
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, tree).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", deb, err, bytes.TrimSpace(out))
	}
	return os.RemoveAll(into)
}

// findMirror returns the address from which this machine takes Debian's main archive, $VITRINE_MIRROR before all.
func findMirror(etc string) (string, error) {
	if m := os.Getenv("VITRINE_MIRROR"); m != "" {
		return m, nil
	}
	files, err := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	if err != nil {
		return "", err
	}
	for _, file := range slices.Concat([]string{filepath.Join(etc, "sources.list")}, files) {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // absent, or not for us to read
		}
		var found string
		switch filepath.Ext(file) {
		case ".list":
			found = mirrorOfList(text)
		case ".sources":
			found = mirrorOfDeb822(text)
		}
		if found != "" {
			return found, nil
		}
	}
	return "", fmt.Errorf("find Debian mirror: none of the sources in %s is Debian's main archive; set VITRINE_MIRROR to one", etc)
}

// mirrorOfList reads one-line sources: "deb [options] URI suite components...".
func mirrorOfList(text []byte) string {
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			_, rest, _ = strings.Cut(rest, "]")
		}
		f := strings.Fields(rest)
		if len(f) >= 3 && isArchive(f[0], f[1:2]) && slices.Contains(f[2:], "main") {
			return f[0]
		}
	}
	return ""
}

// mirrorOfDeb822 reads stanzas of "Types:", "URIs:", "Suites:", "Components:".
func mirrorOfDeb822(text []byte) string {
	for stanza := range strings.SplitSeq(string(text), "\n\n") {
		f := map[string][]string{}
		s := bufio.NewScanner(strings.NewReader(stanza))
		key := ""
		for s.Scan() {
			line := s.Text()
			if strings.HasPrefix(line, "#") {
				continue
			}
			if k, v, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, " ") {
				key, line = strings.ToLower(k), v
			}
			f[key] = append(f[key], strings.Fields(line)...)
		}
		if slices.Equal(f["enabled"], []string{"no"}) || !slices.Contains(f["types"], "deb") || !slices.Contains(f["components"], "main") {
			continue
		}
		for _, uri := range f["uris"] {
			if isArchive(uri, f["suites"]) {
				return uri
			}
		}
	}
	return ""
}

// isArchive tells Debian's main archive from its security archive and from others by the names of the suites and the
// address.
func isArchive(uri string, suites []string) bool {
	debian := []string{"bullseye", "bookworm", "trixie", "forky", "sid", "testing", "unstable", "stable", "oldstable", "oldoldstable"}
	return !strings.Contains(uri, "security") && slices.ContainsFunc(suites, func(s string) bool { return slices.Contains(debian, s) })
}

// hideUser removes a password from an address that goes into a message.
func hideUser(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return "the mirror"
	}
	return u.Redacted()
}

// tail returns the last lines of a program's output.
func tail(out []byte, lines int) string {
	all := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return string(bytes.Join(all, []byte("\n")))
}
