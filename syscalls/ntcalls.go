package syscalls

// ntSignatures are the calls of NT kernels that are shown in words, one a line;
// see parseNTParam and ntKinds for the notation. Names and meanings of the
// parameters are those of Microsoft's public documentation (ntifs.h, wdm.h,
// winternl.h) and, for what it leaves out, common knowledge of the native API.
const ntSignatures = `
NtCreateFile FileHandle>ph DesiredAccess:access.File ObjectAttributes:oa IoStatusBlock>iosb AllocationSize:li FileAttributes:c.fileattr ShareAccess:c.share CreateDisposition:c.disposition CreateOptions:c.createopt EaBuffer:p EaLength:u
NtOpenFile FileHandle>ph DesiredAccess:access.File ObjectAttributes:oa IoStatusBlock>iosb ShareAccess:c.share OpenOptions:c.createopt
NtDeleteFile ObjectAttributes:oa
NtReadFile FileHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb Buffer>rbuf Length:u ByteOffset:li Key:p
NtWriteFile FileHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb Buffer:buf@6 Length:u ByteOffset:li Key:p
NtReadFileScatter FileHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb SegmentArray:p Length:u ByteOffset:li Key:p
NtWriteFileGather FileHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb SegmentArray:p Length:u ByteOffset:li Key:p
NtDeviceIoControlFile FileHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb IoControlCode:ioctl InputBuffer:buf@7 InputBufferLength:u OutputBuffer>rbuf OutputBufferLength:u
NtFsControlFile FileHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb FsControlCode:ioctl InputBuffer:buf@7 InputBufferLength:u OutputBuffer>rbuf OutputBufferLength:u
NtFlushBuffersFile FileHandle:h IoStatusBlock>iosb
NtQueryInformationFile FileHandle:h IoStatusBlock>iosb FileInformation:p Length:u FileInformationClass:c.fileinfo
NtSetInformationFile FileHandle:h IoStatusBlock>iosb FileInformation:p Length:u FileInformationClass:c.fileinfo
NtQueryAttributesFile ObjectAttributes:oa FileInformation:p
NtQueryFullAttributesFile ObjectAttributes:oa FileInformation:p
NtQueryDirectoryFile FileHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb FileInformation:p Length:u FileInformationClass:c.fileinfo ReturnSingleEntry:b FileName:us RestartScan:b
NtQueryDirectoryFileEx FileHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb FileInformation:p Length:u FileInformationClass:c.fileinfo QueryFlags:x FileName:us
NtQueryVolumeInformationFile FileHandle:h IoStatusBlock>iosb FsInformation:p Length:u FsInformationClass:c.fsinfo
NtSetVolumeInformationFile FileHandle:h IoStatusBlock>iosb FsInformation:p Length:u FsInformationClass:c.fsinfo
NtLockFile FileHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb ByteOffset:li Length:li Key:u FailImmediately:b ExclusiveLock:b
NtUnlockFile FileHandle:h IoStatusBlock>iosb ByteOffset:li Length:li Key:u
NtCreateNamedPipeFile FileHandle>ph DesiredAccess:access.File ObjectAttributes:oa IoStatusBlock>iosb ShareAccess:c.share CreateDisposition:c.disposition CreateOptions:c.createopt NamedPipeType:u ReadMode:u CompletionMode:u MaximumInstances:u InboundQuota:u OutboundQuota:u DefaultTimeout:time
NtCreateMailslotFile FileHandle>ph DesiredAccess:access.File ObjectAttributes:oa IoStatusBlock>iosb CreateOptions:c.createopt MailslotQuota:u MaximumMessageSize:u ReadTimeout:time
NtNotifyChangeDirectoryFile FileHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb Buffer:p Length:u CompletionFilter:x WatchTree:b
NtCancelIoFile FileHandle:h IoStatusBlock>iosb
NtCancelIoFileEx FileHandle:h IoRequestToCancel:p IoStatusBlock>iosb
NtQueryEaFile FileHandle:h IoStatusBlock>iosb Buffer:p Length:u ReturnSingleEntry:b EaList:p EaListLength:u EaIndex:p RestartScan:b
NtSetEaFile FileHandle:h IoStatusBlock>iosb Buffer:p Length:u
NtCreateIoCompletion IoCompletionHandle>ph DesiredAccess:access.IoCompletion ObjectAttributes:oa Count:u
NtRemoveIoCompletion IoCompletionHandle:h KeyContext>pw ApcContext>pw IoStatusBlock>iosb Timeout:time
NtSetIoCompletion IoCompletionHandle:h KeyContext:p ApcContext:p IoStatus:status IoStatusInformation:n

NtCreateKey KeyHandle>ph DesiredAccess:access.Key ObjectAttributes:oa TitleIndex:u Class:us CreateOptions:c.regopt Disposition>pc.regdisposition
NtCreateKeyTransacted KeyHandle>ph DesiredAccess:access.Key ObjectAttributes:oa TitleIndex:u Class:us CreateOptions:c.regopt TransactionHandle:h Disposition>pc.regdisposition
NtOpenKey KeyHandle>ph DesiredAccess:access.Key ObjectAttributes:oa
NtOpenKeyEx KeyHandle>ph DesiredAccess:access.Key ObjectAttributes:oa OpenOptions:c.regopt
NtOpenKeyTransacted KeyHandle>ph DesiredAccess:access.Key ObjectAttributes:oa TransactionHandle:h
NtOpenKeyTransactedEx KeyHandle>ph DesiredAccess:access.Key ObjectAttributes:oa OpenOptions:c.regopt TransactionHandle:h
NtDeleteKey KeyHandle:h
NtDeleteValueKey KeyHandle:h ValueName:us
NtQueryKey KeyHandle:h KeyInformationClass:c.keyinfo KeyInformation:p Length:u ResultLength>pu
NtSetInformationKey KeyHandle:h KeySetInformationClass:u KeySetInformation:p KeySetInformationLength:u
NtSetValueKey KeyHandle:h ValueName:us TitleIndex:u Type:c.regtype Data:buf@5 DataSize:u
NtQueryValueKey KeyHandle:h ValueName:us KeyValueInformationClass:c.valueinfo KeyValueInformation:p Length:u ResultLength>pu
NtQueryMultipleValueKey KeyHandle:h ValueEntries:p EntryCount:u ValueBuffer:p BufferLength+pu RequiredBufferLength>pu
NtEnumerateKey KeyHandle:h Index:u KeyInformationClass:c.keyinfo KeyInformation:p Length:u ResultLength>pu
NtEnumerateValueKey KeyHandle:h Index:u KeyValueInformationClass:c.valueinfo KeyValueInformation:p Length:u ResultLength>pu
NtFlushKey KeyHandle:h
NtRenameKey KeyHandle:h NewName:us
NtNotifyChangeKey KeyHandle:h Event:h ApcRoutine:p ApcContext:p IoStatusBlock>iosb CompletionFilter:x WatchTree:b Buffer:p BufferSize:u Asynchronous:b
NtLoadKey TargetKey:oa SourceFile:oa
NtUnloadKey TargetKey:oa
NtSaveKey KeyHandle:h FileHandle:h
NtRestoreKey KeyHandle:h FileHandle:h Flags:x

NtCreateProcess ProcessHandle>ph DesiredAccess:access.Process ObjectAttributes:oa ParentProcess:h InheritObjectTable:b SectionHandle:h DebugPort:h TokenHandle:h
NtCreateProcessEx ProcessHandle>ph DesiredAccess:access.Process ObjectAttributes:oa ParentProcess:h Flags:x SectionHandle:h DebugPort:h TokenHandle:h Reserved:u
NtCreateUserProcess ProcessHandle>ph ThreadHandle>ph ProcessDesiredAccess:access.Process ThreadDesiredAccess:access.Thread ProcessObjectAttributes:oa ThreadObjectAttributes:oa ProcessFlags:x ThreadFlags:x ProcessParameters:params CreateInfo:p AttributeList:p
NtOpenProcess ProcessHandle>ph DesiredAccess:access.Process ObjectAttributes:oa ClientId:cid
NtTerminateProcess ProcessHandle:h ExitStatus:status
NtSuspendProcess ProcessHandle:h
NtResumeProcess ProcessHandle:h
NtGetNextProcess ProcessHandle:h DesiredAccess:access.Process HandleAttributes:c.obj Flags:x NewProcessHandle>ph
NtQueryInformationProcess ProcessHandle:h ProcessInformationClass:c.procinfo ProcessInformation:p ProcessInformationLength:u ReturnLength>pu
NtSetInformationProcess ProcessHandle:h ProcessInformationClass:c.procinfo ProcessInformation:p ProcessInformationLength:u
NtCreateJobObject JobHandle>ph DesiredAccess:access.Job ObjectAttributes:oa
NtOpenJobObject JobHandle>ph DesiredAccess:access.Job ObjectAttributes:oa
NtAssignProcessToJobObject JobHandle:h ProcessHandle:h
NtTerminateJobObject JobHandle:h ExitStatus:status

NtCreateThread ThreadHandle>ph DesiredAccess:access.Thread ObjectAttributes:oa ProcessHandle:h ClientId>cid ThreadContext:p InitialTeb:p CreateSuspended:b
NtCreateThreadEx ThreadHandle>ph DesiredAccess:access.Thread ObjectAttributes:oa ProcessHandle:h StartRoutine:p Argument:p CreateFlags:c.threadflags ZeroBits:n StackSize:n MaximumStackSize:n AttributeList:p
NtOpenThread ThreadHandle>ph DesiredAccess:access.Thread ObjectAttributes:oa ClientId:cid
NtTerminateThread ThreadHandle:h ExitStatus:status
NtSuspendThread ThreadHandle:h PreviousSuspendCount>pu
NtResumeThread ThreadHandle:h PreviousSuspendCount>pu
NtAlertThread ThreadHandle:h
NtAlertThreadByThreadId ThreadId:n
NtWaitForAlertByThreadId Address:p Timeout:time
NtTestAlert
NtYieldExecution
NtGetNextThread ProcessHandle:h ThreadHandle:h DesiredAccess:access.Thread HandleAttributes:c.obj Flags:x NewThreadHandle>ph
NtGetContextThread ThreadHandle:h ThreadContext:p
NtSetContextThread ThreadHandle:h ThreadContext:p
NtContinue ContextRecord:p TestAlert:b
NtContinueEx ContextRecord:p ContinueArgument:p
NtCallbackReturn OutputBuffer:p OutputLength:u Status:status
NtQueryInformationThread ThreadHandle:h ThreadInformationClass:c.threadinfo ThreadInformation:p ThreadInformationLength:u ReturnLength>pu
NtSetInformationThread ThreadHandle:h ThreadInformationClass:c.threadinfo ThreadInformation:p ThreadInformationLength:u
NtQueueApcThread ThreadHandle:h ApcRoutine:p ApcArgument1:p ApcArgument2:p ApcArgument3:p
NtQueueApcThreadEx ThreadHandle:h ReserveHandle:h ApcRoutine:p ApcArgument1:p ApcArgument2:p ApcArgument3:p
NtImpersonateThread ServerThreadHandle:h ClientThreadHandle:h SecurityQos:p
NtDelayExecution Alertable:b DelayInterval:time

NtCreateSection SectionHandle>ph DesiredAccess:access.Section ObjectAttributes:oa MaximumSize:li SectionPageProtection:c.prot AllocationAttributes:c.sec FileHandle:h
NtCreateSectionEx SectionHandle>ph DesiredAccess:access.Section ObjectAttributes:oa MaximumSize:li SectionPageProtection:c.prot AllocationAttributes:c.sec FileHandle:h ExtendedParameters:p ExtendedParameterCount:u
NtOpenSection SectionHandle>ph DesiredAccess:access.Section ObjectAttributes:oa
NtMapViewOfSection SectionHandle:h ProcessHandle:h BaseAddress+pw ZeroBits:n CommitSize:n SectionOffset+li ViewSize+pw InheritDisposition:c.inherit AllocationType:c.alloc Win32Protect:c.prot
NtMapViewOfSectionEx SectionHandle:h ProcessHandle:h BaseAddress+pw SectionOffset+li ViewSize+pw AllocationType:c.alloc PageProtection:c.prot ExtendedParameters:p ExtendedParameterCount:u
NtUnmapViewOfSection ProcessHandle:h BaseAddress:p
NtUnmapViewOfSectionEx ProcessHandle:h BaseAddress:p Flags:x
NtExtendSection SectionHandle:h NewSectionSize+li
NtQuerySection SectionHandle:h SectionInformationClass:u SectionInformation:p SectionInformationLength:n ReturnLength>pw
NtAreMappedFilesTheSame File1MappedAsAnImage:p File2MappedAsFile:p

NtAllocateVirtualMemory ProcessHandle:h BaseAddress+pw ZeroBits:n RegionSize+pw AllocationType:c.alloc Protect:c.prot
NtAllocateVirtualMemoryEx ProcessHandle:h BaseAddress+pw RegionSize+pw AllocationType:c.alloc PageProtection:c.prot ExtendedParameters:p ExtendedParameterCount:u
NtFreeVirtualMemory ProcessHandle:h BaseAddress+pw RegionSize+pw FreeType:c.alloc
NtProtectVirtualMemory ProcessHandle:h BaseAddress+pw RegionSize+pw NewProtect:c.prot OldProtect>pc.prot
NtQueryVirtualMemory ProcessHandle:h BaseAddress:p MemoryInformationClass:c.meminfo MemoryInformation:p MemoryInformationLength:n ReturnLength>pw
NtReadVirtualMemory ProcessHandle:h BaseAddress:p Buffer:p NumberOfBytesToRead:n NumberOfBytesRead>pw
NtWriteVirtualMemory ProcessHandle:h BaseAddress:p Buffer:buf@3 NumberOfBytesToWrite:n NumberOfBytesWritten>pw
NtFlushVirtualMemory ProcessHandle:h BaseAddress+pw RegionSize+pw IoStatusBlock>iosb
NtLockVirtualMemory ProcessHandle:h BaseAddress+pw RegionSize+pw MapType:x
NtUnlockVirtualMemory ProcessHandle:h BaseAddress+pw RegionSize+pw MapType:x
NtFlushInstructionCache ProcessHandle:h BaseAddress:p Length:n

NtCreatePort PortHandle>ph ObjectAttributes:oa MaxConnectionInfoLength:u MaxMessageLength:u MaxPoolUsage:u
NtConnectPort PortHandle>ph PortName:us SecurityQos:p ClientView:p ServerView:p MaxMessageLength>pu ConnectionInformation:p ConnectionInformationLength+pu
NtSecureConnectPort PortHandle>ph PortName:us SecurityQos:p ClientView:p RequiredServerSid:p ServerView:p MaxMessageLength>pu ConnectionInformation:p ConnectionInformationLength+pu
NtListenPort PortHandle:h ConnectionRequest>msg
NtAcceptConnectPort PortHandle>ph PortContext:p ConnectionRequest:msg AcceptConnection:b ServerView:p ClientView:p
NtCompleteConnectPort PortHandle:h
NtRequestPort PortHandle:h RequestMessage:msg
NtRequestWaitReplyPort PortHandle:h RequestMessage:msg ReplyMessage>msg
NtReplyPort PortHandle:h ReplyMessage:msg
NtReplyWaitReceivePort PortHandle:h PortContext>pw ReplyMessage:msg ReceiveMessage>msg
NtReplyWaitReceivePortEx PortHandle:h PortContext>pw ReplyMessage:msg ReceiveMessage>msg Timeout:time
NtImpersonateClientOfPort PortHandle:h Message:msg
NtAlpcCreatePort PortHandle>ph ObjectAttributes:oa PortAttributes:p
NtAlpcConnectPort PortHandle>ph PortName:us ObjectAttributes:oa PortAttributes:p Flags:x RequiredServerSid:p ConnectionMessage:msg BufferLength+pw OutMessageAttributes:p InMessageAttributes:p Timeout:time
NtAlpcConnectPortEx PortHandle>ph ConnectionPortObjectAttributes:oa ClientPortObjectAttributes:oa PortAttributes:p Flags:x ServerSecurityRequirements:p ConnectionMessage:msg BufferLength+pw OutMessageAttributes:p InMessageAttributes:p Timeout:time
NtAlpcAcceptConnectPort PortHandle>ph ConnectionPortHandle:h Flags:x ObjectAttributes:oa PortAttributes:p PortContext:p ConnectionRequest:msg ConnectionMessageAttributes:p AcceptConnection:b
NtAlpcSendWaitReceivePort PortHandle:h Flags:x SendMessage:msg SendMessageAttributes:p ReceiveMessage>msg BufferLength+pw ReceiveMessageAttributes:p Timeout:time
NtAlpcDisconnectPort PortHandle:h Flags:x
NtAlpcCancelMessage PortHandle:h Flags:x MessageContext:p
NtAlpcImpersonateClientOfPort PortHandle:h Message:msg Flags:p
NtAlpcCreatePortSection PortHandle:h Flags:x SectionHandle:h SectionSize:n AlpcSectionHandle>ph ActualSectionSize>pw
NtAlpcQueryInformation PortHandle:h PortInformationClass:u PortInformation:p Length:u ReturnLength>pu
NtAlpcSetInformation PortHandle:h PortInformationClass:u PortInformation:p Length:u

NtOpenProcessToken ProcessHandle:h DesiredAccess:access.Token TokenHandle>ph
NtOpenProcessTokenEx ProcessHandle:h DesiredAccess:access.Token HandleAttributes:c.obj TokenHandle>ph
NtOpenThreadToken ThreadHandle:h DesiredAccess:access.Token OpenAsSelf:b TokenHandle>ph
NtOpenThreadTokenEx ThreadHandle:h DesiredAccess:access.Token OpenAsSelf:b HandleAttributes:c.obj TokenHandle>ph
NtDuplicateToken ExistingTokenHandle:h DesiredAccess:access.Token ObjectAttributes:oa EffectiveOnly:b Type:c.tokentype NewTokenHandle>ph
NtFilterToken ExistingTokenHandle:h Flags:x SidsToDisable:p PrivilegesToDelete:p RestrictedSids:p NewTokenHandle>ph
NtCreateToken TokenHandle>ph DesiredAccess:access.Token ObjectAttributes:oa Type:c.tokentype AuthenticationId:p ExpirationTime:time User:p Groups:p Privileges:p Owner:p PrimaryGroup:p DefaultDacl:p Source:p
NtQueryInformationToken TokenHandle:h TokenInformationClass:c.tokeninfo TokenInformation:p TokenInformationLength:u ReturnLength>pu
NtSetInformationToken TokenHandle:h TokenInformationClass:c.tokeninfo TokenInformation:p TokenInformationLength:u
NtAdjustPrivilegesToken TokenHandle:h DisableAllPrivileges:b NewState:p BufferLength:u PreviousState:p ReturnLength>pu
NtAdjustGroupsToken TokenHandle:h ResetToDefault:b NewState:p BufferLength:u PreviousState:p ReturnLength>pu
NtPrivilegeCheck ClientToken:h RequiredPrivileges:p Result:p
NtAccessCheck SecurityDescriptor:p ClientToken:h DesiredAccess:access GenericMapping:p PrivilegeSet:p PrivilegeSetLength+pu GrantedAccess:p AccessStatus:p
NtCompareTokens FirstTokenHandle:h SecondTokenHandle:h Equal:p
NtImpersonateAnonymousToken ThreadHandle:h

NtCreateEvent EventHandle>ph DesiredAccess:access.Event ObjectAttributes:oa EventType:c.eventtype InitialState:b
NtOpenEvent EventHandle>ph DesiredAccess:access.Event ObjectAttributes:oa
NtSetEvent EventHandle:h PreviousState>pu
NtResetEvent EventHandle:h PreviousState>pu
NtPulseEvent EventHandle:h PreviousState>pu
NtClearEvent EventHandle:h
NtQueryEvent EventHandle:h EventInformationClass:u EventInformation:p EventInformationLength:u ReturnLength>pu
NtCreateMutant MutantHandle>ph DesiredAccess:access.Mutant ObjectAttributes:oa InitialOwner:b
NtOpenMutant MutantHandle>ph DesiredAccess:access.Mutant ObjectAttributes:oa
NtReleaseMutant MutantHandle:h PreviousCount>pu
NtCreateSemaphore SemaphoreHandle>ph DesiredAccess:access.Semaphore ObjectAttributes:oa InitialCount:i MaximumCount:i
NtOpenSemaphore SemaphoreHandle>ph DesiredAccess:access.Semaphore ObjectAttributes:oa
NtReleaseSemaphore SemaphoreHandle:h ReleaseCount:i PreviousCount>pu
NtCreateTimer TimerHandle>ph DesiredAccess:access.Timer ObjectAttributes:oa TimerType:c.eventtype
NtOpenTimer TimerHandle>ph DesiredAccess:access.Timer ObjectAttributes:oa
NtSetTimer TimerHandle:h DueTime:time TimerApcRoutine:p TimerContext:p ResumeTimer:b Period:i PreviousState:p
NtCancelTimer TimerHandle:h CurrentState:p
NtWaitForSingleObject Handle:h Alertable:b Timeout:time
NtWaitForMultipleObjects Count:u Handles:hs@0 WaitType:c.waittype Alertable:b Timeout:time
NtSignalAndWaitForSingleObject SignalHandle:h WaitHandle:h Alertable:b Timeout:time
NtCreateKeyedEvent KeyedEventHandle>ph DesiredAccess:access.KeyedEvent ObjectAttributes:oa Flags:x
NtOpenKeyedEvent KeyedEventHandle>ph DesiredAccess:access.KeyedEvent ObjectAttributes:oa
NtWaitForKeyedEvent KeyedEventHandle:h Key:p Alertable:b Timeout:time
NtReleaseKeyedEvent KeyedEventHandle:h Key:p Alertable:b Timeout:time

NtClose Handle:h
NtDuplicateObject SourceProcessHandle:h SourceHandle:n TargetProcessHandle:h TargetHandle>pw DesiredAccess:access HandleAttributes:c.obj Options:c.dupopt
NtQueryObject Handle:h ObjectInformationClass:c.objinfo ObjectInformation:p ObjectInformationLength:u ReturnLength>pu
NtSetInformationObject Handle:h ObjectInformationClass:c.objinfo ObjectInformation:p ObjectInformationLength:u
NtMakeTemporaryObject Handle:h
NtMakePermanentObject Handle:h
NtCreateDirectoryObject DirectoryHandle>ph DesiredAccess:access.Directory ObjectAttributes:oa
NtOpenDirectoryObject DirectoryHandle>ph DesiredAccess:access.Directory ObjectAttributes:oa
NtQueryDirectoryObject DirectoryHandle:h Buffer:p Length:u ReturnSingleEntry:b RestartScan:b Context+pu ReturnLength>pu
NtCreateSymbolicLinkObject LinkHandle>ph DesiredAccess:access.SymbolicLink ObjectAttributes:oa LinkTarget:us
NtOpenSymbolicLinkObject LinkHandle>ph DesiredAccess:access.SymbolicLink ObjectAttributes:oa
NtQuerySymbolicLinkObject LinkHandle:h LinkTarget>us ReturnedLength>pu
NtQuerySecurityObject Handle:h SecurityInformation:x SecurityDescriptor:p Length:u LengthNeeded>pu
NtSetSecurityObject Handle:h SecurityInformation:x SecurityDescriptor:p

NtQuerySystemInformation SystemInformationClass:c.sysinfo SystemInformation:p SystemInformationLength:u ReturnLength>pu
NtSetSystemInformation SystemInformationClass:c.sysinfo SystemInformation:p SystemInformationLength:u
NtQuerySystemTime SystemTime>li
NtQueryPerformanceCounter PerformanceCounter>li PerformanceFrequency>li
NtLoadDriver DriverServiceName:us
NtUnloadDriver DriverServiceName:us
NtDisplayString String:us
NtShutdownSystem Action:u
NtSystemDebugControl Command:u InputBuffer:p InputBufferLength:u OutputBuffer:p OutputBufferLength:u ReturnLength>pu
`
