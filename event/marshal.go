package event

// json.Marshal goes through the same encoder, so that a record looks the same
// however it is written (but for <, > and &, which json.Marshal escapes).

// MarshalJSON implements json.Marshaler.
func (g Guest) MarshalJSON() ([]byte, error) { return g.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (i Info) MarshalJSON() ([]byte, error) { return i.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (p Process) MarshalJSON() ([]byte, error) { return p.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (c Current) MarshalJSON() ([]byte, error) { return c.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (m Module) MarshalJSON() ([]byte, error) { return m.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (l Library) MarshalJSON() ([]byte, error) { return l.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (m Mapping) MarshalJSON() ([]byte, error) { return m.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (f File) MarshalJSON() ([]byte, error) { return f.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (l Life) MarshalJSON() ([]byte, error) { return l.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (c Call) MarshalJSON() ([]byte, error) { return c.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (a Arg) MarshalJSON() ([]byte, error) { return a.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (s Stats) MarshalJSON() ([]byte, error) { return s.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (l Lost) MarshalJSON() ([]byte, error) { return l.AppendJSON(nil), nil }
