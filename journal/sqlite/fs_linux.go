package sqlite

import "syscall"

// networkFileSystems are known by their magic numbers, statfs(2).
var networkFileSystems = map[uint32]string{
	0x00006969: "NFS",
	0x0000517b: "SMB",
	0xff534d42: "CIFS",
	0xfe534d42: "SMB",
	0x5346414f: "AFS",
	0x6b414653: "AFS",
	0x73757245: "Coda",
	0x00c36400: "Ceph",
	0x0bd00bd0: "Lustre",
	0x47504653: "GPFS",
}

// networkFileSystem names the network file system that a file or folder is on,
// if it is on one.
func networkFileSystem(path string) string {
	var info syscall.Statfs_t
	if syscall.Statfs(path, &info) != nil {
		return "" // whatever is wrong will show when the file is opened
	}
	return networkFileSystems[uint32(info.Type)]
}
