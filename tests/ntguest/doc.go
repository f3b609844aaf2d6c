// Package ntguest builds and boots a small kernel of our own that lays its structures out in memory as a given build of
// NT does, so that what reads NT guests has something to be tested on. It is not Windows and has no line of it: it
// proves that code paths work, not that they are right about Windows. README.md says what is laid out and what is not.
//
// The guest's sources are C, in src; layouts come from shared/data, which not every machine has (see DataDir), and gcc
// builds one kernel for each into the cache. The guest tells what it has laid out as lines of JSON on its serial port,
// from records of its own, and obeys commands there. The package knows nothing of the rest of Vitrine.
//
// A Guest's methods are safe for concurrent use unless they say otherwise.
package ntguest
