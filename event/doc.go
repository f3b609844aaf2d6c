// Package event is the schema of everything Vitrine prints or sends: plain
// structs with the JSON names that the command line documents. It is a leaf
// and the only package that a consumer of Vitrine's output has to import.
//
// The schema is versioned by SchemaVersion. Within one version fields are only
// ever added, never renamed, retyped or removed.
//
// Conventions, the same for every record:
//
//   - addresses are strings, "0x" and lower-case hex digits (see Addr), so that
//     readers whose numbers are doubles lose no bits;
//   - times are RFC 3339 with nanoseconds, in UTC;
//   - fields are always present, empty lists are [] and empty maps {}; the
//     exceptions are Call's errno, which is absent when the call succeeded, and
//     kernel, which is absent when a program made it;
//   - strings that come from the guest are whatever bytes the guest chose. In
//     JSON they are valid UTF-8: a byte that is not part of valid UTF-8 is
//     written as the four characters \xNN (in the JSON text: "\\xNN"), as Go's
//     %q does. A guest string that really holds a backslash, an x and two hex
//     digits looks the same; see Text. Characters that a terminal might act on
//     (control characters, also U+007F to U+009F, and invisible formatting
//     such as bidirectional overrides) are \u escapes, which any JSON reader
//     turns back into the character itself.
//
// Records are values: they hold no reference to a guest, and may be shared
// between goroutines as long as nobody writes to them.
package event

// SchemaVersion is the version of the records in this package. It is increased
// only when a field is renamed, retyped or removed.
const SchemaVersion = 1
