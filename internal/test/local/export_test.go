package local

import "os"

// KeepInMemory has the temporary folders of the tests in memory, where it has space for them: of the CPU
// time of a server on a disk, ext4 takes half to find free inodes where files were deleted just before.
func KeepInMemory() {
	if hasMemory() {
		_ = os.Setenv("TMPDIR", memory) // it fails for a bad name only
	}
}

// MoveTo has a stopped server use another port from its next start on.
func (i *instance) MoveTo(port int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.port = port
}
