package syscalls

//go:generate go run ./internal/gen
