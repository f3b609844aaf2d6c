/* gcc -m32 -g -O1 -ffreestanding -fno-pic -nostdlib -static -Wl,--build-id=0x00112233445566778899aabbccddeeff -Wl,-e,start -T small.ld -o small small.c */
typedef struct { unsigned int val; } kuid_t;
typedef unsigned long pgd_t;
enum system_states { SYSTEM_BOOTING, SYSTEM_RUNNING = 3 };
struct list_head { struct list_head *next, *prev; };
struct mm_struct;
struct task_struct {
	volatile long state;
	const kuid_t uid;
	unsigned int on_rq : 3, flag : 2;
	union { struct list_head rcu; struct { int one; long long two; }; };
	char comm[16];
	struct list_head links[2];
	struct mm_struct *mm;
	enum system_states s;
	struct { short inner; } nameless;
	void (*call)(int);
	int tail[];
};
struct mm_struct { pgd_t *pgd; };
const char linux_banner[] = "Linux version 9.9.9 (test) #1\n";
struct task_struct init_task;
struct mm_struct init_mm;
void start(void) {}
