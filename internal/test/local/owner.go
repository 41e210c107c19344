package local

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// owner is the user that the servers run as when the current user is root; nil is the current
// user.
type owner struct {
	name     string
	uid, gid uint32
}

// serviceUser is the owner of new folders: the current user, or, when that is root, the first
// user that the servers' packages created. Postgres refuses to run as root.
func serviceUser() (*owner, error) {
	if os.Getuid() != 0 {
		return nil, nil //nolint:nilnil // nil is the current user
	}
	for _, name := range []string{"postgres", "redis", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			return newOwner(u)
		}
	}
	return nil, fmt.Errorf("servers don't run as root, and there is none of the users postgres, redis, nobody")
}

func newOwner(u *user.User) (*owner, error) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", u.Username, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", u.Username, err)
	}
	return &owner{name: u.Username, uid: uint32(uid), gid: uint32(gid)}, nil
}

// ownerOf is the user that runs the servers of a folder when the current user is root: the
// folder's owner, so that the owner can go on using it, or the service user where root owns it.
func ownerOf(info fs.FileInfo, service *owner) *owner {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if service == nil || !ok || stat.Uid == 0 {
		return service
	}
	return &owner{name: "number " + strconv.Itoa(int(stat.Uid)), uid: stat.Uid, gid: stat.Gid}
}

// id is the number of the user.
func (o *owner) id() uint32 {
	if o == nil {
		return uint32(os.Getuid()) //nolint:gosec // a user's number
	}
	return o.uid
}

func (o *owner) credential() *syscall.Credential {
	if o == nil {
		return nil
	}
	return &syscall.Credential{Uid: o.uid, Gid: o.gid}
}

// reaches reports whether the owner can enter dir. It tries, because modes alone don't
// tell (access lists, mounts).
func (o *owner) reaches(ctx context.Context, dir string) bool {
	if o == nil {
		return true
	}
	cd := exec.CommandContext(ctx, "/bin/sh", "-c", `cd -- "$1"`, "sh", dir) //nolint:gosec // the path is an argument, not script
	cd.Dir = "/"
	cd.SysProcAttr = &syscall.SysProcAttr{Credential: o.credential()}
	return cd.Run() == nil
}
