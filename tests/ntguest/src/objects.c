// Objects with their headers, their types, and handle tables of two levels.
#include "nt.h"

uptr ObTypeIndexTable[TypeCount];
u8 ObHeaderCookie = BUILD >= 10000 ? 0x9d : 0;
uptr PsProcessType, PsThreadType, IoFileObjectType, SeTokenObjectType, ExEventObjectType, MmSectionObjectType, CmKeyObjectType;
uptr PspCidTable;
static uptr disk;

static const struct { int type; const u16 *name; const char *text; } types[] = {
	{ TypeType, u"Type", "Type" }, { DirectoryType, u"Directory", "Directory" }, { TokenType, u"Token", "Token" },
	{ ProcessType, u"Process", "Process" }, { ThreadType, u"Thread", "Thread" }, { EventType, u"Event", "Event" },
	{ MutantType, u"Mutant", "Mutant" }, { DeviceType, u"Device", "Device" }, { FileType, u"File", "File" },
	{ SectionType, u"Section", "Section" }, { KeyType, u"Key", "Key" }, { PortType, u"ALPC Port", "ALPC Port" },
};
enum { NTYPES = sizeof types / sizeof types[0], NAMEINFO = OBJECT_HEADER_NAME_INFO__size };

const char *type_name(int type)
{
	for (int i = 0; i < NTYPES; i++)
		if (types[i].type == type)
			return types[i].text;
	return "";
}

static void header(uptr h, int type, const u16 *name)
{
	PT(h, OBJECT_HEADER_PointerCount) = 3;
	PT(h, OBJECT_HEADER_HandleCount) = 1;
#ifdef OBJECT_HEADER_TypeIndex
	U8(h, OBJECT_HEADER_TypeIndex) = (u8)((BUILD >= 10000 ? h >> 8 & 255 : 0) ^ ObHeaderCookie ^ (u32)type);
	U8(h, OBJECT_HEADER_InfoMask) = name ? 2 : 0;
#else
	PT(h, OBJECT_HEADER_Type) = ObTypeIndexTable[type];
	U8(h, OBJECT_HEADER_NameInfoOffset) = name ? NAMEINFO : 0;
#endif
	if (name)
		unicode(h - NAMEINFO + OBJECT_HEADER_NAME_INFO_Name, name, (uptr)wdup(name));
}

// object makes an object with a body of size bytes, named or not, and returns the body.
void *object(int type, u32 size, const char *tag, const u16 *name)
{
	uptr h = (uptr)pool(NAMEINFO + OBJECT_HEADER_Body + size, tag) + NAMEINFO;
	header(h, type, name);
	uptr t = ObTypeIndexTable[type];
	if (t) {
		U32(t, OBJECT_TYPE_TotalNumberOfObjects)++;
		U32(t, OBJECT_TYPE_TotalNumberOfHandles)++;
	}
	return (void *)(h + OBJECT_HEADER_Body);
}

void object_free(void *o, u32 size)
{
	uptr h = (uptr)o - OBJECT_HEADER_Body, name = h - NAMEINFO + OBJECT_HEADER_NAME_INFO_Name;
	if (PT(name, PSZ))
		pool_free((void *)PT(name, PSZ), U16(name, 2));
	memset((void *)h, 0, OBJECT_HEADER_Body);
	pool_free((void *)(h - NAMEINFO), NAMEINFO + OBJECT_HEADER_Body + size);
}

void *named_object(int type, const u16 *name) { return object(type, 0x80, type == MutantType ? "Muta" : "Objt", name); }

void objects_init(void)
{
	for (int i = 0; i < NTYPES; i++) {
		uptr t = (uptr)object(TypeType, OBJECT_TYPE__size, "ObjT", types[i].name);
		ObTypeIndexTable[types[i].type] = t;
		unicode(AT(t, OBJECT_TYPE_Name), types[i].name, (uptr)wdup(types[i].name));
		U8(t, OBJECT_TYPE_Index) = (u8)types[i].type;
		list_init(AT(t, OBJECT_TYPE_TypeList));
	}
	ObTypeIndexTable[1] = 0xbad0b0b0;
#ifndef OBJECT_HEADER_TypeIndex
	for (int i = 0; i < NTYPES; i++) // the first types were made before the type of types
		PT(ObTypeIndexTable[types[i].type] - OBJECT_HEADER_Body, OBJECT_HEADER_Type) = ObTypeIndexTable[TypeType];
#endif
	PsProcessType = ObTypeIndexTable[ProcessType];
	PsThreadType = ObTypeIndexTable[ThreadType];
	IoFileObjectType = ObTypeIndexTable[FileType];
	SeTokenObjectType = ObTypeIndexTable[TokenType];
	ExEventObjectType = ObTypeIndexTable[EventType];
	MmSectionObjectType = ObTypeIndexTable[SectionType];
	CmKeyObjectType = ObTypeIndexTable[KeyType];
	disk = (uptr)object(DeviceType, DEVICE_OBJECT__size, "Devi", u"HarddiskVolume2");
	U16(disk, DEVICE_OBJECT_Type) = 3;
	U16(disk, DEVICE_OBJECT_Size) = DEVICE_OBJECT__size;
	void *dir = object(DirectoryType, 0x100, "Dire", u"Device");
	PT(disk - OBJECT_HEADER_Body - NAMEINFO, OBJECT_HEADER_NAME_INFO_Directory) = (uptr)dir;
	PspCidTable = table_new(0, 0);
}

// file_object makes an open file of the volume; name is the path on it.
void *file_object(const u16 *name)
{
	uptr f = (uptr)object(FileType, FILE_OBJECT__size, "File", 0);
	U16(f, FILE_OBJECT_Type) = 5;
	U16(f, FILE_OBJECT_Size) = FILE_OBJECT__size;
	PT(f, FILE_OBJECT_DeviceObject) = disk;
	U8(f, FILE_OBJECT_ReadAccess) = 1;
	U8(f, FILE_OBJECT_SharedRead) = 1;
	U64(f, FILE_OBJECT_CurrentByteOffset) = 0x1234;
	unicode(AT(f, FILE_OBJECT_FileName), name, (uptr)wdup(name));
	return (void *)f;
}

void file_free(uptr f)
{
	uptr n = AT(f, FILE_OBJECT_FileName);
	pool_free((void *)PT(n, PSZ), U16(n, 2));
	object_free((void *)f, FILE_OBJECT__size);
}

struct kcb { struct kcb *next; uptr at, parent; u16 name[40]; };
static struct kcb *kcbs;

// kcb_for returns the control block of a key's last component, shared among the keys below it.
static uptr kcb_for(uptr parent, const u16 *name, u32 n)
{
	for (struct kcb *k = kcbs; k; k = k->next) {
		u32 i = 0;
		while (i < n && k->name[i] == name[i])
			i++;
		if (i == n && !k->name[n] && k->parent == parent)
			return k->at;
	}
	struct kcb *k = pool(sizeof *k, "Mine");
	memcpy(k->name, name, 2 * n);
	k->parent = parent;
	k->next = kcbs;
	kcbs = k;
	int narrow = 1;
	for (u32 i = 0; i < n; i++)
		narrow &= name[i] < 256;
	uptr block = (uptr)pool(CM_NAME_CONTROL_BLOCK_Name + 2 * n + 2, "CMnb");
	U8(block, CM_NAME_CONTROL_BLOCK_Compressed) = (u8)narrow;
	U16(block, CM_NAME_CONTROL_BLOCK_NameLength) = (u16)(narrow ? n : 2 * n);
	for (u32 i = 0; i < n; i++)
		if (narrow)
			U8(block, CM_NAME_CONTROL_BLOCK_Name + i) = (u8)name[i];
		else
			U16(block, CM_NAME_CONTROL_BLOCK_Name + 2 * i) = name[i];
	k->at = (uptr)pool(CM_KEY_CONTROL_BLOCK__size, "CMkb");
	PT(k->at, CM_KEY_CONTROL_BLOCK_RefCount) = 1;
	PT(k->at, CM_KEY_CONTROL_BLOCK_ParentKcb) = parent;
	PT(k->at, CM_KEY_CONTROL_BLOCK_NameBlock) = block;
	return k->at;
}

void *key_object(const u16 *path)
{
	uptr kcb = 0;
	while (*path) {
		u32 n = 0;
		while (path[n] && path[n] != '\\')
			n++;
		if (n && n < 40)
			kcb = kcb_for(kcb, path, n);
		path += n + (path[n] != 0);
	}
	uptr k = (uptr)object(KeyType, CM_KEY_BODY__size, "Key ", 0);
	U32(k, CM_KEY_BODY_Type) = 0x6b793032;
	PT(k, CM_KEY_BODY_KeyControlBlock) = kcb;
	return (void *)k;
}

enum { ENTRY = HANDLE_TABLE_ENTRY__size, PER_PAGE = 4096 / ENTRY };

uptr table_new(uptr process, u32 pid)
{
	uptr t = (uptr)pool(HANDLE_TABLE__size, "Obtb");
	PT(t, HANDLE_TABLE_QuotaProcess) = process;
	PT(t, HANDLE_TABLE_UniqueProcessId) = pid;
	PT(t, HANDLE_TABLE_TableCode) = (uptr)pv(page_alloc());
	list_init(AT(t, HANDLE_TABLE_HandleTableList));
	U32(t, HANDLE_TABLE_NextHandleNeedingPool) = PER_PAGE * 4;
	return t;
}

// slot returns the entry of an index, making the table grow to a second level and by pages.
static uptr slot(uptr t, u32 index)
{
	uptr code = PT(t, HANDLE_TABLE_TableCode);
	if (!(code & 3) && index >= PER_PAGE) {
		uptr dir = (uptr)pv(page_alloc());
		PT(dir, 0) = code;
		PT(t, HANDLE_TABLE_TableCode) = code = dir | 1;
	}
	if (!(code & 3))
		return code + ENTRY * index;
	uptr at = (code & ~3ul) + PSZ * (index / PER_PAGE);
	if (!PT(at, 0)) {
		PT(at, 0) = (uptr)pv(page_alloc());
		U32(t, HANDLE_TABLE_NextHandleNeedingPool) += PER_PAGE * 4;
	}
	return PT(at, 0) + ENTRY * (index % PER_PAGE);
}

static void fill(uptr e, uptr object, u32 access)
{
#ifdef HANDLE_TABLE_ENTRY_ObjectPointerBits
	U64(e, 0) = object ? (u64)object << 16 | 0xfffe | 1 : 0;
	U32(e, 8) = access;
#else
	PT(e, HANDLE_TABLE_ENTRY_Object) = object ? object | 1 : 0;
	U32(e, HANDLE_TABLE_ENTRY_GrantedAccess) = access;
#endif
}

void cid_add(u32 id, uptr o) { fill(slot(PspCidTable, id / 4), o, 0); }
int cid_used(u32 id) { return PT(slot(PspCidTable, id / 4), 0) != 0; }
void cid_remove(u32 id) { fill(slot(PspCidTable, id / 4), 0, 0); }

static u32 count(uptr t, int by)
{
#ifdef HANDLE_TABLE_HandleCount
	return U32(t, HANDLE_TABLE_HandleCount) += (u32)by;
#else
	return U32(t, HANDLE_TABLE_FreeLists + HANDLE_TABLE_FREE_HANDLECOUNT) += (u32)by;
#endif
}

// handle_add opens an object: the lowest free value, as NT gives out.
u32 handle_add(struct proc *p, int type, void *obj, u32 access, const u16 *name)
{
	u32 index = 1;
	for (int i = 0; i < p->nhandle; i++) // kept sorted by value
		if (p->handles[i].value == index * 4)
			index += (index + 1) % PER_PAGE ? 1 : 2; // the first of each page is not a handle
	if (p->nhandle == p->hcap) {
		u32 size = sizeof(struct handle) * (u32)p->hcap;
		struct handle *more = pool(size ? 2 * size : 32 * sizeof *more, "Mine");
		if (size) {
			memcpy(more, p->handles, size);
			pool_free(p->handles, size);
		}
		p->handles = more;
		p->hcap = size ? 2 * p->hcap : 32;
	}
	int at = p->nhandle++;
	for (; at > 0 && p->handles[at - 1].value > index * 4; at--)
		p->handles[at] = p->handles[at - 1];
	opened(type, (uptr)obj, 1);
	p->handles[at] = (struct handle){ index * 4, access, (uptr)obj, type, name };
	fill(slot(p->table, index), (uptr)obj - OBJECT_HEADER_Body, access);
	count(p->table, 1);
	return index * 4;
}

struct handle *handle_find(struct proc *p, u32 value)
{
	for (int i = 0; i < p->nhandle; i++)
		if (p->handles[i].value == value)
			return &p->handles[i];
	return 0;
}

static void drop(struct handle *h)
{
	if (h->type == FileType)
		file_free(h->object);
	else
		object_free((void *)h->object, h->type == KeyType ? CM_KEY_BODY__size : 0x80);
}

int handle_close(struct proc *p, u32 value)
{
	struct handle *h = handle_find(p, value);
	if (!h)
		return 0;
	fill(slot(p->table, value / 4), 0, 0);
	count(p->table, -1);
	if (h->type == ProcessType || h->type == ThreadType)
		opened(h->type, h->object, -1);
	else
		drop(h);
	for (p->nhandle--; h < p->handles + p->nhandle; h++)
		h[0] = h[1];
	return 1;
}

void table_free(struct proc *p)
{
	while (p->nhandle)
		handle_close(p, p->handles[0].value);
	uptr code = PT(p->table, HANDLE_TABLE_TableCode), dir = code & ~3ul;
	for (u32 i = 0; code & 3 && i < 4096 / PSZ; i++)
		if (PT(dir, i * PSZ))
			page_free(phys_of((void *)PT(dir, i * PSZ)));
	page_free(phys_of((void *)dir));
	pool_free((void *)p->table, HANDLE_TABLE__size);
	if (p->hcap)
		pool_free(p->handles, sizeof(struct handle) * (u32)p->hcap);
}
