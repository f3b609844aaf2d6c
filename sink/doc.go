// Package sink takes the records of package event where they shall go: to a
// writer as JSON lines or as text for people, and by Fanout to several outputs
// at once.
//
// A sink never stalls a guest silently. Each output of a Fanout either blocks
// the source or drops records, as its owner chose; both are counted, and a
// stream that lost records says so itself, by an event.Lost where they are
// missing.
//
// Records hold strings that the guest chose. The text sink escapes what a
// terminal might act on, whatever the source has done before; JSON is escaped
// by package event.
package sink
