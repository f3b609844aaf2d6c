/* Copies of user memory for records. Included by implant.c. */

static long copy_user(void *to, u64 from, u64 size)
{
	return copy_from_user_nofault(to, (const void *)from, size);
}

/* string copies a string with its NUL, at most room bytes. It returns the bytes
 * used, 0 where it cannot be read; *cut tells that the string goes on. */
static u32 string(u8 *to, u32 room, u64 from, int *cut)
{
	long n = room ? strncpy_from_user_nofault((char *)to, (const void *)from, room) : 0;
	u8 last = 1;
	if (n < 0 || n > (long)room || !room)
		return 0;
	if (n == 0) { /* an empty string: the only one whose NUL is not counted */
		*to = 0;
		return 1;
	}
	/* A string that just fits and one that is cut look the same. */
	if (n == (long)room)
		*cut = copy_user(&last, from + room - 1, 1) || last;
	return n;
}

static u32 vector(u8 *to, u32 room, u64 from, u32 wide, int *failed)
{
	u32 used = 2, n, got, end = 0;
	int cut = 0;
	for (n = 0;; n++, from += wide) {
		u64 p = 0;
		if (copy_user(&p, from, wide)) {
			end |= VECTOR_FAULT;
			break;
		}
		if (!p)
			break;
		if (n == VECTOR_MAX || cut || used + 2 > room) {
			end |= VECTOR_MORE;
			break;
		}
		if (!(got = string(to + used, room - used, p, &cut))) {
			end |= VECTOR_FAULT;
			break;
		}
		used += got;
	}
	if (cut)
		end |= VECTOR_CUT;
	*(u16 *)to = end;
	*failed = (end & VECTOR_FAULT) != 0;
	return n || !*failed ? used : CAP_FAILED;
}

static u32 count(u8 *to, u64 from, u32 wide)
{
	u32 n;
	for (n = 0; n < COUNT_MAX; n++) {
		u64 p = 0;
		if (copy_user(&p, from + n * wide, wide))
			return CAP_FAILED;
		if (!p)
			break;
	}
	*(u32 *)to = n;
	return 4;
}

static u32 buffer(u8 *to, u64 max, struct capture *c, u64 from, u64 *args, u64 next, u64 result)
{
	u64 unit = c->unit ? c->unit : 1, n = ~0ul;
	if (c->lenarg < 6)
		n = args[c->lenarg];
	if (c->lenarg == LEN_NEXT || c->lenarg == LEN_BOTH)
		n = next;
	if ((c->lenarg == LEN_RESULT || c->lenarg == LEN_BOTH) && result < n)
		n = result;
	if (n < max && n * unit < max)
		max = n * unit;
	return copy_user(to, from, max) == 0 ? (u32)max : CAP_FAILED;
}

/* place is where a capture stands in the buffer. */
struct place {
	u16 at, size;
};

static u32 capture_one(u8 *buf, u32 used, struct func *f, u32 i, u32 flags, u64 *args, u64 result, struct place *places, int *failed)
{
	struct capture *c = &f->captures[i];
	u32 room = SLOT_DATA - used, max = c->max < room ? c->max : room, wide = flags & FUNC_COMPAT ? 4 : 8, got;
	u64 from = args[c->arg < 6 ? c->arg : 0], next = 0;
	u8 *to = buf + used;
	int cut = 0;
	if (c->kind == CAP_VIA) {
		if (c->arg >= i || c->off + 12u > places[c->arg].size)
			return CAP_NOT_NOW;
		from = *(u64 *)(buf + places[c->arg].at + c->off);
		next = *(u32 *)(buf + places[c->arg].at + c->off + 8);
	}
	if (!from)
		return CAP_NOT_NOW;
	switch (c->kind) {
	case CAP_STRING:
		got = string(to, max, from, &cut);
		got = !got ? CAP_FAILED : cut ? got - 1 : got;
		break;
	case CAP_VECTOR:
		return vector(to, max, from, wide, failed);
	case CAP_COUNT:
		got = room < 4 ? CAP_NOT_NOW : count(to, from, wide);
		break;
	default:
		got = buffer(to, max, c, from, args, next, result);
	}
	*failed = got == CAP_FAILED;
	return got;
}

/* capture copies what the function's table wants in a phase, and what is in
 * again. It returns the bytes used of buf; again tells what failed. The buffer
 * is on the stack, where the kernel's usercopy check knows it at once. */
static u32 capture(u8 *buf, struct func *f, u32 flags, u64 *args, u64 result, u32 phase, u64 *again)
{
	u32 used = 0, n = f->ncaptures < MAX_CAPTURES ? f->ncaptures : MAX_CAPTURES;
	struct place places[MAX_CAPTURES];
	u64 failures = 0;
	for (u32 i = 0; i < n && used + 4 < SLOT_DATA; i++) {
		struct capture *c = &f->captures[i];
		u32 got = CAP_NOT_NOW;
		int failed = 0;
		places[i].size = 0;
		if ((c->when & phase) || (*again >> i & 1))
			got = capture_one(buf, used + 2, f, i, flags, args, result, places, &failed);
		*(u16 *)(buf + used) = got;
		if (failed)
			failures |= 1ul << i;
		used += 2;
		if (got < CAP_NOT_NOW) {
			places[i].at = used;
			places[i].size = got;
			used = (used + got + 1) & ~1u;
		}
	}
	*again = failures;
	return used;
}
