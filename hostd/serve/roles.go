package serve

import (
	"bufio"
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Roles of callers. Which route takes which stands in openapi.yaml and nowhere else.
const (
	Engine   = "engine"
	Operator = "operator"
	Tenant   = "tenant"
	Public   = "public" // everyone, also without a certificate
)

var (
	pathLine   = regexp.MustCompile(`^  (/\S*):$`)
	methodLine = regexp.MustCompile(`^    (get|put|post|delete|patch|head|options|trace):$`)
	rolesLine  = regexp.MustCompile(`^      x-troth-roles: \[([a-z, ]+)\]$`)
)

// Table reads who may call what from an OpenAPI file: "METHOD /path" to roles. It reads the three kinds of lines that it needs in the one form
// in which our file has them, and refuses a file in which an operation has no roles or unknown ones: a route that nobody may call is
// found when the daemon is built, one that anybody may call never comes to be.
func Table(spec []byte) (map[string][]string, error) {
	table := map[string][]string{}
	var path, route string
	inPaths := false
	lines := bufio.NewScanner(bytes.NewReader(spec))
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if line != "" && line[0] != ' ' && line[0] != '#' {
			inPaths = line == "paths:"
		}
		if !inPaths {
			if strings.Contains(line, "x-troth-roles:") {
				return nil, fmt.Errorf("line %d: roles outside of paths", n)
			}
			continue
		}
		if m := pathLine.FindStringSubmatch(line); m != nil {
			path, route = m[1], ""
			continue
		}
		if m := methodLine.FindStringSubmatch(line); m != nil {
			route = strings.ToUpper(m[1]) + " " + path
			if _, twice := table[route]; twice || path == "" {
				return nil, fmt.Errorf("line %d: %s stands twice or under no path", n, route)
			}
			table[route] = nil
			continue
		}
		if !strings.Contains(line, "x-troth-roles") {
			continue
		}
		m := rolesLine.FindStringSubmatch(line)
		if m == nil || route == "" || table[route] != nil {
			return nil, fmt.Errorf("line %d: roles in an unknown form or place", n)
		}
		for _, role := range strings.Split(m[1], ", ") {
			if !slices.Contains([]string{Engine, Operator, Tenant, Public}, role) {
				return nil, fmt.Errorf("line %d: unknown role %q", n, role)
			}
			table[route] = append(table[route], role)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cannot read the OpenAPI file: %w", err)
	}
	for route, roles := range table {
		if len(roles) == 0 {
			return nil, fmt.Errorf("%s has no x-troth-roles", route)
		}
	}
	if len(table) == 0 {
		return nil, fmt.Errorf("the OpenAPI file has no routes")
	}
	return table, nil
}
