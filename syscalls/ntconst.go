package syscalls

import (
	"strconv"
	"strings"
)

// ntFam is a group of constants of NT: flags that are joined, or an enumeration.
type ntFam struct {
	flags  bool
	zero   string // of flags: the name of none of them
	names  []constant
	values []string // of an enumeration that counts from 0; "" for values without a name
}

// ntFamilies are the constants of arguments, as ntifs.h, wdm.h, winnt.h and
// winternl.h name them.
var ntFamilies = map[string]*ntFam{
	"fileattr": {flags: true, names: []constant{
		{0x1, "FILE_ATTRIBUTE_READONLY"}, {0x2, "FILE_ATTRIBUTE_HIDDEN"}, {0x4, "FILE_ATTRIBUTE_SYSTEM"}, {0x10, "FILE_ATTRIBUTE_DIRECTORY"},
		{0x20, "FILE_ATTRIBUTE_ARCHIVE"}, {0x40, "FILE_ATTRIBUTE_DEVICE"}, {0x80, "FILE_ATTRIBUTE_NORMAL"}, {0x100, "FILE_ATTRIBUTE_TEMPORARY"},
		{0x200, "FILE_ATTRIBUTE_SPARSE_FILE"}, {0x400, "FILE_ATTRIBUTE_REPARSE_POINT"}, {0x800, "FILE_ATTRIBUTE_COMPRESSED"},
		{0x1000, "FILE_ATTRIBUTE_OFFLINE"}, {0x2000, "FILE_ATTRIBUTE_NOT_CONTENT_INDEXED"}, {0x4000, "FILE_ATTRIBUTE_ENCRYPTED"}}},
	"share":       {flags: true, zero: "0", names: []constant{{1, "FILE_SHARE_READ"}, {2, "FILE_SHARE_WRITE"}, {4, "FILE_SHARE_DELETE"}}},
	"disposition": {values: []string{"FILE_SUPERSEDE", "FILE_OPEN", "FILE_CREATE", "FILE_OPEN_IF", "FILE_OVERWRITE", "FILE_OVERWRITE_IF"}},
	"createopt": {flags: true, names: []constant{
		{0x1, "FILE_DIRECTORY_FILE"}, {0x2, "FILE_WRITE_THROUGH"}, {0x4, "FILE_SEQUENTIAL_ONLY"}, {0x8, "FILE_NO_INTERMEDIATE_BUFFERING"},
		{0x10, "FILE_SYNCHRONOUS_IO_ALERT"}, {0x20, "FILE_SYNCHRONOUS_IO_NONALERT"}, {0x40, "FILE_NON_DIRECTORY_FILE"},
		{0x80, "FILE_CREATE_TREE_CONNECTION"}, {0x100, "FILE_COMPLETE_IF_OPLOCKED"}, {0x200, "FILE_NO_EA_KNOWLEDGE"},
		{0x400, "FILE_OPEN_REMOTE_INSTANCE"}, {0x800, "FILE_RANDOM_ACCESS"}, {0x1000, "FILE_DELETE_ON_CLOSE"},
		{0x2000, "FILE_OPEN_BY_FILE_ID"}, {0x4000, "FILE_OPEN_FOR_BACKUP_INTENT"}, {0x8000, "FILE_NO_COMPRESSION"},
		{0x10000, "FILE_OPEN_REQUIRING_OPLOCK"}, {0x20000, "FILE_DISALLOW_EXCLUSIVE"}, {0x100000, "FILE_RESERVE_OPFILTER"},
		{0x200000, "FILE_OPEN_REPARSE_POINT"}, {0x400000, "FILE_OPEN_NO_RECALL"}, {0x800000, "FILE_OPEN_FOR_FREE_SPACE_QUERY"}}},
	"obj": {flags: true, names: []constant{
		{0x2, "OBJ_INHERIT"}, {0x10, "OBJ_PERMANENT"}, {0x20, "OBJ_EXCLUSIVE"}, {0x40, "OBJ_CASE_INSENSITIVE"}, {0x80, "OBJ_OPENIF"},
		{0x100, "OBJ_OPENLINK"}, {0x200, "OBJ_KERNEL_HANDLE"}, {0x400, "OBJ_FORCE_ACCESS_CHECK"},
		{0x800, "OBJ_IGNORE_IMPERSONATED_DEVICEMAP"}, {0x1000, "OBJ_DONT_REPARSE"}}},
	"dupopt": {flags: true, names: []constant{{1, "DUPLICATE_CLOSE_SOURCE"}, {2, "DUPLICATE_SAME_ACCESS"}, {4, "DUPLICATE_SAME_ATTRIBUTES"}}},
	"alloc": {flags: true, names: []constant{
		{0x1000, "MEM_COMMIT"}, {0x2000, "MEM_RESERVE"}, {0x4000, "MEM_DECOMMIT"}, {0x8000, "MEM_RELEASE"}, {0x10000, "MEM_FREE"},
		{0x40000, "MEM_RESERVE_PLACEHOLDER"}, {0x80000, "MEM_RESET"}, {0x100000, "MEM_TOP_DOWN"}, {0x200000, "MEM_WRITE_WATCH"},
		{0x400000, "MEM_PHYSICAL"}, {0x800000, "MEM_ROTATE"}, {0x1000000, "MEM_RESET_UNDO"}, {0x20000000, "MEM_LARGE_PAGES"}}},
	"prot": {flags: true, names: []constant{
		{0x1, "PAGE_NOACCESS"}, {0x2, "PAGE_READONLY"}, {0x4, "PAGE_READWRITE"}, {0x8, "PAGE_WRITECOPY"}, {0x10, "PAGE_EXECUTE"},
		{0x20, "PAGE_EXECUTE_READ"}, {0x40, "PAGE_EXECUTE_READWRITE"}, {0x80, "PAGE_EXECUTE_WRITECOPY"}, {0x100, "PAGE_GUARD"},
		{0x200, "PAGE_NOCACHE"}, {0x400, "PAGE_WRITECOMBINE"}, {0x40000000, "PAGE_TARGETS_INVALID"}}},
	"sec": {flags: true, names: []constant{
		{0x200000, "SEC_BASED"}, {0x400000, "SEC_NO_CHANGE"}, {0x800000, "SEC_FILE"}, {0x1000000, "SEC_IMAGE"},
		{0x2000000, "SEC_PROTECTED_IMAGE"}, {0x4000000, "SEC_RESERVE"}, {0x8000000, "SEC_COMMIT"}, {0x10000000, "SEC_NOCACHE"},
		{0x40000000, "SEC_WRITECOMBINE"}, {0x80000000, "SEC_LARGE_PAGES"}}},
	"inherit":        {values: []string{"", "ViewShare", "ViewUnmap"}},
	"regopt":         {flags: true, zero: "REG_OPTION_NON_VOLATILE", names: []constant{{1, "REG_OPTION_VOLATILE"}, {2, "REG_OPTION_CREATE_LINK"}, {4, "REG_OPTION_BACKUP_RESTORE"}, {8, "REG_OPTION_OPEN_LINK"}}},
	"regdisposition": {values: []string{"", "REG_CREATED_NEW_KEY", "REG_OPENED_EXISTING_KEY"}},
	"regtype": {values: []string{"REG_NONE", "REG_SZ", "REG_EXPAND_SZ", "REG_BINARY", "REG_DWORD", "REG_DWORD_BIG_ENDIAN", "REG_LINK",
		"REG_MULTI_SZ", "REG_RESOURCE_LIST", "REG_FULL_RESOURCE_DESCRIPTOR", "REG_RESOURCE_REQUIREMENTS_LIST", "REG_QWORD"}},
	"keyinfo": {values: []string{"KeyBasicInformation", "KeyNodeInformation", "KeyFullInformation", "KeyNameInformation", "KeyCachedInformation",
		"KeyFlagsInformation", "KeyVirtualizationInformation", "KeyHandleTagsInformation"}},
	"valueinfo": {values: []string{"KeyValueBasicInformation", "KeyValueFullInformation", "KeyValuePartialInformation",
		"KeyValueFullInformationAlign64", "KeyValuePartialInformationAlign64"}},
	"fileinfo": {values: []string{"", "FileDirectoryInformation", "FileFullDirectoryInformation", "FileBothDirectoryInformation",
		"FileBasicInformation", "FileStandardInformation", "FileInternalInformation", "FileEaInformation", "FileAccessInformation",
		"FileNameInformation", "FileRenameInformation", "FileLinkInformation", "FileNamesInformation", "FileDispositionInformation",
		"FilePositionInformation", "FileFullEaInformation", "FileModeInformation", "FileAlignmentInformation", "FileAllInformation",
		"FileAllocationInformation", "FileEndOfFileInformation", "FileAlternateNameInformation", "FileStreamInformation",
		"FilePipeInformation", "FilePipeLocalInformation", "FilePipeRemoteInformation", "FileMailslotQueryInformation",
		"FileMailslotSetInformation", "FileCompressionInformation", "FileObjectIdInformation", "FileCompletionInformation",
		"FileMoveClusterInformation", "FileQuotaInformation", "FileReparsePointInformation", "FileNetworkOpenInformation",
		"FileAttributeTagInformation", "FileTrackingInformation", "FileIdBothDirectoryInformation", "FileIdFullDirectoryInformation"}},
	"fsinfo": {values: []string{"", "FileFsVolumeInformation", "FileFsLabelInformation", "FileFsSizeInformation", "FileFsDeviceInformation",
		"FileFsAttributeInformation", "FileFsControlInformation", "FileFsFullSizeInformation", "FileFsObjectIdInformation"}},
	"procinfo": {values: []string{"ProcessBasicInformation", "ProcessQuotaLimits", "ProcessIoCounters", "ProcessVmCounters", "ProcessTimes",
		"ProcessBasePriority", "ProcessRaisePriority", "ProcessDebugPort", "ProcessExceptionPort", "ProcessAccessToken",
		"ProcessLdtInformation", "ProcessLdtSize", "ProcessDefaultHardErrorMode", "ProcessIoPortHandlers", "ProcessPooledUsageAndLimits",
		"ProcessWorkingSetWatch", "ProcessUserModeIOPL", "ProcessEnableAlignmentFaultFixup", "ProcessPriorityClass",
		"ProcessWx86Information", "ProcessHandleCount", "ProcessAffinityMask", "ProcessPriorityBoost", "ProcessDeviceMap",
		"ProcessSessionInformation", "ProcessForegroundInformation", "ProcessWow64Information", "ProcessImageFileName",
		"ProcessLUIDDeviceMapsEnabled", "ProcessBreakOnTermination", "ProcessDebugObjectHandle", "ProcessDebugFlags",
		"ProcessHandleTracing", "ProcessIoPriority", "ProcessExecuteFlags", "ProcessTlsInformation", "ProcessCookie",
		"ProcessImageInformation"}},
	"threadinfo": {values: []string{"ThreadBasicInformation", "ThreadTimes", "ThreadPriority", "ThreadBasePriority", "ThreadAffinityMask",
		"ThreadImpersonationToken", "ThreadDescriptorTableEntry", "ThreadEnableAlignmentFaultFixup", "ThreadEventPair",
		"ThreadQuerySetWin32StartAddress", "ThreadZeroTlsCell", "ThreadPerformanceCount", "ThreadAmILastThread", "ThreadIdealProcessor",
		"ThreadPriorityBoost", "ThreadSetTlsArrayAddress", "ThreadIsIoPending", "ThreadHideFromDebugger", "ThreadBreakOnTermination"}},
	"threadflags": {flags: true, names: []constant{{1, "THREAD_CREATE_FLAGS_CREATE_SUSPENDED"}, {2, "THREAD_CREATE_FLAGS_SKIP_THREAD_ATTACH"},
		{4, "THREAD_CREATE_FLAGS_HIDE_FROM_DEBUGGER"}}},
	"meminfo": {values: []string{"MemoryBasicInformation", "MemoryWorkingSetInformation", "MemoryMappedFilenameInformation",
		"MemoryRegionInformation", "MemoryWorkingSetExInformation"}},
	"objinfo": {values: []string{"ObjectBasicInformation", "ObjectNameInformation", "ObjectTypeInformation", "ObjectTypesInformation",
		"ObjectHandleFlagInformation"}},
	"tokentype": {values: []string{"", "TokenPrimary", "TokenImpersonation"}},
	"tokeninfo": {values: []string{"", "TokenUser", "TokenGroups", "TokenPrivileges", "TokenOwner", "TokenPrimaryGroup", "TokenDefaultDacl",
		"TokenSource", "TokenType", "TokenImpersonationLevel", "TokenStatistics", "TokenRestrictedSids", "TokenSessionId",
		"TokenGroupsAndPrivileges", "TokenSessionReference", "TokenSandBoxInert", "TokenAuditPolicy", "TokenOrigin", "TokenElevationType",
		"TokenLinkedToken", "TokenElevation", "TokenHasRestrictions", "TokenAccessInformation", "TokenVirtualizationAllowed",
		"TokenVirtualizationEnabled", "TokenIntegrityLevel", "TokenUIAccess", "TokenMandatoryPolicy", "TokenLogonSid"}},
	"eventtype": {values: []string{"NotificationEvent", "SynchronizationEvent"}},
	"waittype":  {values: []string{"WaitAll", "WaitAny"}},
	"sysinfo": {values: []string{0: "SystemBasicInformation", 1: "SystemProcessorInformation", 2: "SystemPerformanceInformation",
		3: "SystemTimeOfDayInformation", 5: "SystemProcessInformation", 8: "SystemProcessorPerformanceInformation",
		11: "SystemModuleInformation", 16: "SystemHandleInformation", 23: "SystemInterruptInformation", 33: "SystemExceptionInformation",
		35: "SystemKernelDebuggerInformation", 37: "SystemRegistryQuotaInformation", 45: "SystemLookasideInformation",
		64: "SystemExtendedHandleInformation", 103: "SystemCodeIntegrityInformation"}},
}

// ntFamily returns a value in the words of a family.
func ntFamily(name string, v uint32) string {
	f := ntFamilies[name]
	if f == nil {
		return hexText(v)
	}
	if !f.flags {
		if int64(v) < int64(len(f.values)) && f.values[v] != "" {
			return f.values[v]
		}
		return hexText(v)
	}
	if v == 0 && f.zero != "" {
		return f.zero
	}
	return ntJoined(v, f.names)
}

// ntJoined names the bits of v; those without a name stay a number.
func ntJoined(v uint32, lists ...[]constant) string {
	var parts []string
	for _, names := range lists {
		for _, c := range names {
			if bit := uint32(c.value); v&bit == bit && bit != 0 {
				parts = append(parts, c.name)
				v &^= bit
			}
		}
	}
	if v != 0 || len(parts) == 0 {
		parts = append(parts, hexText(v))
	}
	return strings.Join(parts, "|")
}

func hexText(v uint32) string {
	if v == 0 {
		return "0"
	}
	return "0x" + strconv.FormatUint(uint64(v), 16)
}

// ntRights are the specific rights of the types of objects, the rights that
// make up a whole first.
var ntRights = map[string][]constant{
	"File": {
		{0x1f01ff, "FILE_ALL_ACCESS"}, {0x120089, "FILE_GENERIC_READ"}, {0x120116, "FILE_GENERIC_WRITE"}, {0x1200a0, "FILE_GENERIC_EXECUTE"},
		{0x1, "FILE_READ_DATA"}, {0x2, "FILE_WRITE_DATA"}, {0x4, "FILE_APPEND_DATA"}, {0x8, "FILE_READ_EA"}, {0x10, "FILE_WRITE_EA"},
		{0x20, "FILE_EXECUTE"}, {0x40, "FILE_DELETE_CHILD"}, {0x80, "FILE_READ_ATTRIBUTES"}, {0x100, "FILE_WRITE_ATTRIBUTES"}},
	"Key": {
		{0xf003f, "KEY_ALL_ACCESS"}, {0x20019, "KEY_READ"}, {0x20006, "KEY_WRITE"}, {0x1, "KEY_QUERY_VALUE"}, {0x2, "KEY_SET_VALUE"},
		{0x4, "KEY_CREATE_SUB_KEY"}, {0x8, "KEY_ENUMERATE_SUB_KEYS"}, {0x10, "KEY_NOTIFY"}, {0x20, "KEY_CREATE_LINK"},
		{0x100, "KEY_WOW64_64KEY"}, {0x200, "KEY_WOW64_32KEY"}},
	"Process": {
		{0x1fffff, "PROCESS_ALL_ACCESS"}, {0x1, "PROCESS_TERMINATE"}, {0x2, "PROCESS_CREATE_THREAD"}, {0x4, "PROCESS_SET_SESSIONID"},
		{0x8, "PROCESS_VM_OPERATION"}, {0x10, "PROCESS_VM_READ"}, {0x20, "PROCESS_VM_WRITE"}, {0x40, "PROCESS_DUP_HANDLE"},
		{0x80, "PROCESS_CREATE_PROCESS"}, {0x100, "PROCESS_SET_QUOTA"}, {0x200, "PROCESS_SET_INFORMATION"},
		{0x400, "PROCESS_QUERY_INFORMATION"}, {0x800, "PROCESS_SUSPEND_RESUME"}, {0x1000, "PROCESS_QUERY_LIMITED_INFORMATION"},
		{0x2000, "PROCESS_SET_LIMITED_INFORMATION"}},
	"Thread": {
		{0x1fffff, "THREAD_ALL_ACCESS"}, {0x1, "THREAD_TERMINATE"}, {0x2, "THREAD_SUSPEND_RESUME"}, {0x4, "THREAD_ALERT"},
		{0x8, "THREAD_GET_CONTEXT"}, {0x10, "THREAD_SET_CONTEXT"}, {0x20, "THREAD_SET_INFORMATION"}, {0x40, "THREAD_QUERY_INFORMATION"},
		{0x80, "THREAD_SET_THREAD_TOKEN"}, {0x100, "THREAD_IMPERSONATE"}, {0x200, "THREAD_DIRECT_IMPERSONATION"},
		{0x400, "THREAD_SET_LIMITED_INFORMATION"}, {0x800, "THREAD_QUERY_LIMITED_INFORMATION"}, {0x1000, "THREAD_RESUME"}},
	"Section": {
		{0xf001f, "SECTION_ALL_ACCESS"}, {0x1, "SECTION_QUERY"}, {0x2, "SECTION_MAP_WRITE"}, {0x4, "SECTION_MAP_READ"},
		{0x8, "SECTION_MAP_EXECUTE"}, {0x10, "SECTION_EXTEND_SIZE"}, {0x20, "SECTION_MAP_EXECUTE_EXPLICIT"}},
	"Token": {
		{0xf01ff, "TOKEN_ALL_ACCESS"}, {0x1, "TOKEN_ASSIGN_PRIMARY"}, {0x2, "TOKEN_DUPLICATE"}, {0x4, "TOKEN_IMPERSONATE"},
		{0x8, "TOKEN_QUERY"}, {0x10, "TOKEN_QUERY_SOURCE"}, {0x20, "TOKEN_ADJUST_PRIVILEGES"}, {0x40, "TOKEN_ADJUST_GROUPS"},
		{0x80, "TOKEN_ADJUST_DEFAULT"}, {0x100, "TOKEN_ADJUST_SESSIONID"}},
	"Event":        {{0x1f0003, "EVENT_ALL_ACCESS"}, {0x1, "EVENT_QUERY_STATE"}, {0x2, "EVENT_MODIFY_STATE"}},
	"Mutant":       {{0x1f0001, "MUTANT_ALL_ACCESS"}, {0x1, "MUTANT_QUERY_STATE"}},
	"Semaphore":    {{0x1f0003, "SEMAPHORE_ALL_ACCESS"}, {0x1, "SEMAPHORE_QUERY_STATE"}, {0x2, "SEMAPHORE_MODIFY_STATE"}},
	"Timer":        {{0x1f0003, "TIMER_ALL_ACCESS"}, {0x1, "TIMER_QUERY_STATE"}, {0x2, "TIMER_MODIFY_STATE"}},
	"IoCompletion": {{0x1f0003, "IO_COMPLETION_ALL_ACCESS"}, {0x1, "IO_COMPLETION_QUERY_STATE"}, {0x2, "IO_COMPLETION_MODIFY_STATE"}},
	"KeyedEvent":   {{0xf0003, "KEYEDEVENT_ALL_ACCESS"}, {0x1, "KEYEDEVENT_WAIT"}, {0x2, "KEYEDEVENT_WAKE"}},
	"Directory":    {{0xf000f, "DIRECTORY_ALL_ACCESS"}, {0x1, "DIRECTORY_QUERY"}, {0x2, "DIRECTORY_TRAVERSE"}, {0x4, "DIRECTORY_CREATE_OBJECT"}, {0x8, "DIRECTORY_CREATE_SUBDIRECTORY"}},
	"SymbolicLink": {{0xf0001, "SYMBOLIC_LINK_ALL_ACCESS"}, {0x1, "SYMBOLIC_LINK_QUERY"}},
	"Job":          {{0x1f001f, "JOB_OBJECT_ALL_ACCESS"}, {0x1, "JOB_OBJECT_ASSIGN_PROCESS"}, {0x2, "JOB_OBJECT_SET_ATTRIBUTES"}, {0x4, "JOB_OBJECT_QUERY"}, {0x8, "JOB_OBJECT_TERMINATE"}},
}

// ntCommonRights are those of all types.
var ntCommonRights = []constant{
	{0x10000, "DELETE"}, {0x20000, "READ_CONTROL"}, {0x40000, "WRITE_DAC"}, {0x80000, "WRITE_OWNER"}, {0x100000, "SYNCHRONIZE"},
	{0x1000000, "ACCESS_SYSTEM_SECURITY"}, {0x2000000, "MAXIMUM_ALLOWED"}, {0x10000000, "GENERIC_ALL"}, {0x20000000, "GENERIC_EXECUTE"},
	{0x40000000, "GENERIC_WRITE"}, {0x80000000, "GENERIC_READ"}}

// NTAccess returns an access mask in words. Kind is the type of the object
// ("File", "Key"), whose own rights are named then; other bits stay numbers.
func NTAccess(kind string, mask uint32) string {
	rights := ntRights[kind]
	for _, c := range rights {
		if uint32(c.value) == mask { // rights that are made of others
			return c.name
		}
	}
	var single []constant
	for _, c := range rights {
		if c.value&(c.value-1) == 0 {
			single = append(single, c)
		}
	}
	return ntJoined(mask, single, ntCommonRights)
}
