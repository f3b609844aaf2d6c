// Package tests holds what is tested across packages: that sources keep to the rules of the house (which package may
// import which, among others), and that all packages together tell the truth about real guests. It has no code of its
// own and nothing may import it.
package tests
