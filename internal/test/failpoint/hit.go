//go:build !failpoints

package failpoint

// Hit does nothing: this is not a build to be killed.
func Hit(Point) {}
