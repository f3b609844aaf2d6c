// Package nap sleeps for less than a millisecond where the host's system can. It knows nothing of guests, which is why it
// is apart from who waits for them. All of it may be called concurrently.
package nap
