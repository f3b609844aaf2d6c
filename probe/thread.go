package probe

import "github.com/vitrine-vmi/vitrine/arch"

// Thread is the guest thread that a hit belongs to; of an NT guest the fields
// are those of its ETHREAD and EPROCESS: the unique ids of client and parent, and
// ImageFileName. In interrupt context it is
// the thread that was interrupted.
type Thread struct {
	Task arch.GVA // address of its task_struct
	PID  int      // process id, as getpid: task_struct->tgid
	TID  int      // thread id, as gettid: task_struct->pid
	PPID int      // process id of the real parent: task_struct->real_parent->tgid
	Comm string   // short name as the kernel holds it, any bytes: task_struct->comm
	UID  uint32   // real user id: task_struct->cred->uid
	// Kernel says, in an NT guest, that the present call was made by the kernel
	// itself and not by a program: KTHREAD.PreviousMode.
	Kernel bool
}
