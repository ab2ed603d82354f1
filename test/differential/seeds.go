package differential

import (
	"fmt"
	"os"
	"path/filepath"

	"troth/launcher/domain"
)

// Seeds are the requests that the tests of launcher/domain have, each as it is and in the full form in which libvirt
// gets it. root is the repository's top folder.
func Seeds(root string) ([]*Node, error) {
	files, err := filepath.Glob(filepath.Join(root, "launcher/domain/testdata/requests/*.xml"))
	if err != nil {
		return nil, err
	}
	var all []*Node
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		c, err := domain.Read(text, domain.Request)
		if err != nil {
			return nil, fmt.Errorf("cannot use %s: %w", f, err)
		}
		for _, form := range [][]byte{text, domain.Emit(c, domain.Additions{})} {
			n, err := Parse(form)
			if err != nil {
				return nil, fmt.Errorf("cannot use %s: %w", f, err)
			}
			all = append(all, n)
		}
	}
	return all, nil
}
