package ntguest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// arguments says how many arguments the services take whose number matters: those that the guest implements, and some
// more for the tables' sake. All others are told to take none, and do nothing but fail.
var arguments = map[string]int{
	"NtCreateFile": 11, "NtOpenKey": 3, "NtClose": 1, "NtAllocateVirtualMemory": 6, "NtFreeVirtualMemory": 4, "NtDelayExecution": 2,
	"NtTerminateProcess": 2, "NtOpenFile": 6, "NtReadFile": 9, "NtWriteFile": 9, "NtOpenProcess": 4, "NtCreateSection": 7,
	"NtMapViewOfSection": 10, "NtQueryInformationProcess": 5, "NtDeviceIoControlFile": 10, "NtCreateKey": 7, "NtQueryValueKey": 6,
	"NtWaitForSingleObject": 3, "NtProtectVirtualMemory": 5, "NtQuerySystemInformation": 4, "NtCreateProcessEx": 9,
	"NtCreateUserProcess": 11, "NtCreateThread": 8, "NtCreateThreadEx": 11, "NtTerminateThread": 2,
}

// implemented are the services that are in syscall.c.
var implemented = []string{
	"NtCreateFile", "NtOpenKey", "NtClose", "NtAllocateVirtualMemory", "NtFreeVirtualMemory", "NtDelayExecution", "NtTerminateProcess",
	"NtCreateProcessEx", "NtCreateUserProcess", "NtCreateThread", "NtCreateThreadEx", "NtTerminateThread",
}

// ntExports are the services that NT's kernel exports under their own names, of those that are of interest here.
var ntExports = []string{
	"NtAllocateVirtualMemory", "NtClose", "NtCreateFile", "NtCreateSection", "NtDeviceIoControlFile", "NtFreeVirtualMemory",
	"NtMapViewOfSection", "NtOpenFile", "NtOpenProcess", "NtQueryInformationProcess", "NtReadFile", "NtWaitForSingleObject", "NtWriteFile",
}

// zwExports are the services that it exports for calls from within the kernel.
var zwExports = append([]string{"NtOpenKey", "NtCreateKey", "NtQueryValueKey", "NtTerminateProcess", "NtDelayExecution", "NtProtectVirtualMemory", "NtQuerySystemInformation"}, ntExports...)

var functions = []string{
	"ExGetPreviousMode", "IoGetCurrentProcess", "PsGetCurrentProcess", "PsGetCurrentProcessId", "PsGetCurrentThread", "PsGetCurrentThreadId",
	"PsGetProcessCreateTimeQuadPart", "PsGetProcessExitStatus", "PsGetProcessId", "PsGetProcessImageFileName",
	"PsGetProcessInheritedFromUniqueProcessId", "PsGetProcessJob", "PsGetProcessPeb", "PsGetProcessSectionBaseAddress", "PsGetThreadId",
	"PsGetThreadProcess", "PsGetThreadProcessId", "PsGetThreadTeb",
}

var variables = []string{
	"CmKeyObjectType", "ExEventObjectType", "IoFileObjectType", "MmHighestUserAddress", "MmSectionObjectType", "MmSystemRangeStart",
	"MmUserProbeAddress", "NtBuildNumber", "PsInitialSystemProcess", "PsLoadedModuleList", "PsProcessType", "PsThreadType", "SeTokenObjectType",
}

// exports returns exports.inc, sorted by name as an export directory must be.
func (l *layout) exports() []byte {
	names := slices.Concat(functions, variables)
	if l.Arch == "x64" {
		names = append(names, "PsGetProcessWow64Process")
	} else {
		names = append(names, "KeServiceDescriptorTable")
	}
	if _, ok := l.Structs["_OBJECT_HEADER"].Fields["TypeIndex"]; ok {
		names = append(names, "ObGetObjectType")
	}
	for _, n := range ntExports {
		names = append(names, l.present(n, "Nt")...)
	}
	for _, n := range zwExports {
		names = append(names, l.present(n, "Zw")...)
	}
	slices.Sort(names)
	var b bytes.Buffer
	for _, n := range names {
		kind := "FUNC"
		if slices.Contains(variables, n) || n == "KeServiceDescriptorTable" {
			kind = "DATA"
		}
		fmt.Fprintf(&b, "%s(%s)\n", kind, n)
	}
	return b.Bytes()
}

// present returns a service's name with the prefix, nothing if the build has no such service.
func (l *layout) present(name, prefix string) []string {
	if _, ok := l.services[name]; !ok {
		return nil
	}
	return []string{prefix + strings.TrimPrefix(name, "Nt")}
}

// serviceList returns services.inc, sorted by name.
func (l *layout) serviceList() []byte {
	var b bytes.Buffer
	for _, n := range slices.Sorted(maps.Keys(l.services)) {
		fmt.Fprintf(&b, "SVC(%d, %s, %d)\n", l.services[n], n, arguments[n])
	}
	return b.Bytes()
}

// serviceCode returns services.S: the services that only fail, each a function of its own, and those for the kernel.
func (l *layout) serviceCode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "#include \"nt.h\"\n\t.text\n")
	for _, n := range append(slices.Sorted(maps.Keys(l.services)), "NtNoSuchService") {
		if !slices.Contains(implemented, n) {
			fmt.Fprintf(&b, "\t.balign 16\n\t.globl %s\n%s:\tmovl $0xC0000002, %%eax\n\t%s\n", n, n, l.ret(n))
		}
	}
	for _, n := range zwExports {
		if _, ok := l.services[n]; ok {
			l.kernelCall(&b, n)
		}
	}
	return b.Bytes()
}

func (l *layout) ret(name string) string {
	if l.Arch == "x86" && arguments[name] > 0 {
		return fmt.Sprintf("ret $%d", 4*arguments[name])
	}
	return "ret"
}

// kernelCall writes a Zw function. Its form is NT's: tools take the number from the mov.
func (l *layout) kernelCall(b *bytes.Buffer, name string) {
	zw, nr := "Zw"+strings.TrimPrefix(name, "Nt"), l.services[name]
	fmt.Fprintf(b, "\t.balign 32\n\t.globl %s\n%s:\n", zw, zw)
	if l.Arch == "x86" {
		fmt.Fprintf(b, "\tmovl $%d, %%eax\n\tleal 4(%%esp), %%edx\n\tpushfl\n\tpushl $8\n\tcall KiSystemService\n\t%s\n", nr, l.ret(name))
		return
	}
	fmt.Fprintf(b, "\tmovq %%rsp, %%rax\n\tcli\n\tsubq $16, %%rsp\n\tpushq %%rax\n\tpushfq\n\tpushq $16\n\tleaq KiServiceLinkage(%%rip), %%rax\n\tpushq %%rax\n\tmovl $%d, %%eax\n\tjmp KiServiceInternal\n", nr)
}
