// The tree of a process's mappings. It is ordered and not balanced: whoever reads it cannot tell from one entry.
#include "nt.h"

#ifdef MMVAD_Core
#define SHORT MMVAD_SHORT__size
enum { LEFT = RTL_BALANCED_NODE_Left, RIGHT = RTL_BALANCED_NODE_Right, PARENT = RTL_BALANCED_NODE_ParentValue };
#else
#define SHORT MMVAD_SHORT__size
enum { LEFT = MMADDRESS_NODE_LeftChild, RIGHT = MMADDRESS_NODE_RightChild, PARENT = MMADDRESS_NODE_Parent };
#endif

// root returns where the pointer to the top node is.
static uptr root(struct proc *p)
{
#ifdef MMVAD_Core
	return AT(p->ep, EPROCESS_VadRoot);
#else
	return AT(p->ep, EPROCESS_VadRoot) + MM_AVL_TABLE_BalancedRoot + RIGHT;
#endif
}

static uptr above_root(struct proc *p)
{
#ifdef MMVAD_Core
	return 0;
#else
	return AT(p->ep, EPROCESS_VadRoot) + MM_AVL_TABLE_BalancedRoot;
#endif
}

static void counted(struct proc *p)
{
#ifdef MMVAD_Core
	PT(p->ep, EPROCESS_VadCount) = (uptr)p->nvad;
#else
	PT(AT(p->ep, EPROCESS_VadRoot), MM_AVL_TABLE_NumberGenericTableElements) = (uptr)p->nvad << 8 | 8;
	PT(above_root(p), PARENT) = above_root(p);
#endif
}

static void extent(uptr n, uptr first, uptr last)
{
#ifdef MMVAD_SHORT_StartingVpnHigh
	U32(n, MMVAD_SHORT_StartingVpn) = (u32)first;
	U32(n, MMVAD_SHORT_EndingVpn) = (u32)last;
	U8(n, MMVAD_SHORT_StartingVpnHigh) = (u8)((u64)first >> 32);
	U8(n, MMVAD_SHORT_EndingVpnHigh) = (u8)((u64)last >> 32);
#else
	PT(n, MMVAD_SHORT_StartingVpn) = first;
	PT(n, MMVAD_SHORT_EndingVpn) = last;
#endif
}

// Where MMVAD_FLAGS has its bits: the data name widths only, and these follow from the fields' order.
static void flags(uptr n, u32 prot, int private_, int type, u32 pages)
{
#if defined(MMVAD_FLAGS_CommitCharge)
#ifdef X64
	U64(n, MMVAD_SHORT_u) = (u64)pages | (u64)type << 52 | (private_ ? 1ull << 55 : 0) | (u64)prot << 56 | (u64)private_ << 63;
#else
	U32(n, MMVAD_SHORT_u) = pages | (u32)type << 20 | (private_ ? 1u << 23 : 0) | prot << 24 | (u32)private_ << 31;
#endif
#elif defined(MMVAD_FLAGS_Lock)
	U32(n, MMVAD_SHORT_u) = (u32)type << 4 | prot << 7 | (u32)private_ << (12 + MMVAD_FLAGS_PreferredNode__bits + MMVAD_FLAGS_PageSize__bits);
	U32(n, MMVAD_SHORT_u1) = pages | (private_ ? 1u << 31 : 0);
#else
	U32(n, MMVAD_SHORT_u) = (u32)type | prot << 3 | (u32)private_ << 15;
	U32(n, MMVAD_SHORT_u1) = pages;
#endif
}

// backing gives a node its file.
static void backing(struct proc *p, uptr n, const u16 *file)
{
	uptr ca = (uptr)pool(CONTROL_AREA__size, "MmCa"), seg = (uptr)pool(SEGMENT__size, "MmSm");
	uptr f = (uptr)file_object(file);
	PT(ca, CONTROL_AREA_Segment) = seg;
	PT(seg, SEGMENT_ControlArea) = ca;
#ifdef MMVAD_ControlArea
	PT(n, MMVAD_ControlArea) = ca;
	PT(ca, CONTROL_AREA_FilePointer) = f;
	(void)p;
#else
	uptr sub = (uptr)pool(SUBSECTION__size, "MmSs");
	PT(n, MMVAD_Subsection) = sub;
	PT(n, MMVAD_VadsProcess) = p->ep | 1;
	PT(sub, SUBSECTION_ControlArea) = ca;
	PT(ca, CONTROL_AREA_FilePointer) = f | (PSZ == 8 ? 0xd : 5); // a reference with a count in its low bits
#ifdef MMVAD_FileObject
	PT(n, MMVAD_FileObject) = 0;
#endif
#endif
}

static void unback(uptr n)
{
#ifdef MMVAD_ControlArea
	uptr ca = PT(n, MMVAD_ControlArea);
#else
	uptr sub = PT(n, MMVAD_Subsection), ca = PT(sub, SUBSECTION_ControlArea);
	pool_free((void *)sub, SUBSECTION__size);
#endif
	file_free(PT(ca, CONTROL_AREA_FilePointer) & ~(uptr)(PSZ == 8 ? 15 : 7));
	pool_free((void *)PT(ca, CONTROL_AREA_Segment), SEGMENT__size);
	pool_free((void *)ca, CONTROL_AREA__size);
}

struct vad *vad_add(struct proc *p, uptr start, uptr size, u32 prot, int image, const u16 *file)
{
	if (p->nvad == MAXVAD)
		return 0;
	uptr n = (uptr)pool(file ? MMVAD__size : SHORT, file ? "Vad " : "VadS");
	struct vad *v = &p->vad[p->nvad++];
	*v = (struct vad){ n, start, start + size, prot, !file, image, file };
	extent(n, start >> 12, (start + size - 1) >> 12);
	flags(n, prot, !file, image ? 2 : 0, (u32)(size >> 12));
	if (file)
		backing(p, n, file);
	uptr at = root(p), parent = above_root(p);
	while (PT(at, 0)) {
		parent = PT(at, 0);
		struct vad *o = p->vad;
		while (o->node != parent)
			o++;
		at = parent + (start < o->start ? LEFT : RIGHT);
	}
	PT(n, PARENT) = parent;
	PT(at, 0) = n;
	counted(p);
	return v;
}

static void replace(struct proc *p, uptr n, uptr by)
{
	uptr parent = PT(n, PARENT) & ~3ul, at = root(p);
	if (PT(at, 0) != n)
		at = PT(parent, LEFT) == n ? parent + LEFT : parent + RIGHT;
	PT(at, 0) = by;
	if (by)
		PT(by, PARENT) = parent;
}

static void unlink(struct proc *p, uptr n)
{
	uptr l = PT(n, LEFT), r = PT(n, RIGHT);
	if (!l || !r) {
		replace(p, n, l ? l : r);
		return;
	}
	uptr next = r;
	while (PT(next, LEFT))
		next = PT(next, LEFT);
	if (next != r) {
		replace(p, next, PT(next, RIGHT));
		PT(next, RIGHT) = r;
		PT(r, PARENT) = next;
	}
	replace(p, n, next);
	PT(next, LEFT) = l;
	PT(l, PARENT) = next;
}

void vad_remove(struct proc *p, uptr start)
{
	for (int i = 0; i < p->nvad; i++) {
		struct vad *v = &p->vad[i];
		if (v->start != start)
			continue;
		unlink(p, v->node);
		if (v->file)
			unback(v->node);
		pool_free((void *)v->node, v->file ? MMVAD__size : SHORT);
		*v = p->vad[--p->nvad];
		counted(p);
		return;
	}
}
