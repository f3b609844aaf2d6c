package kernel

import "context"

func (b *ntBuilder) useSymbolFile(context.Context) {}
