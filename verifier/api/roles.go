package api

import (
	_ "embed"
	"fmt"
	"strings"
)

// Role is who a caller is: the one organizational unit of its certificate.
type Role string

// The roles of the attestation service. Public needs no certificate.
const (
	RoleHost     Role = "host"
	RoleOperator Role = "operator"
	RoleEngine   Role = "engine"
	RoleTenant   Role = "tenant"
	RolePublic   Role = "public"
)

// Spec is openapi.yaml as built in.
//
//go:embed openapi.yaml
var Spec []byte

// Roles returns for each route, in the form of a http.ServeMux pattern ("GET /v1/hosts/{name}"), who may call it.
func Roles() (map[string][]Role, error) { return ReadRoles(Spec) }

// ReadRoles reads the x-troth-roles of an OpenAPI file. It knows the block style in which this project writes its OpenAPI
// files (a path at two blanks, a method at four, x-troth-roles at six) and no other YAML, so that no program carries a YAML
// library; an operation without roles is an error, therefore a file in another style fails and opens nothing.
func ReadRoles(spec []byte) (map[string][]Role, error) {
	out := map[string][]Role{}
	var path, route string
	in := false
	for n, line := range strings.Split(string(spec), "\n") {
		text := strings.TrimSpace(line)
		indent := len(line) - len(strings.TrimLeft(line, " "))
		switch {
		case indent == 0 && text != "":
			in = text == "paths:"
		case !in || text == "":
		case indent == 2 && strings.HasPrefix(text, "/"):
			path = strings.TrimSuffix(text, ":")
		case indent == 4:
			method := strings.TrimSuffix(text, ":")
			switch method {
			case "get", "put", "post", "delete", "patch", "head", "options":
			default:
				return nil, fmt.Errorf("cannot read roles: line %d: %q is no method", n+1, text)
			}
			route = strings.ToUpper(method) + " " + path
			out[route] = nil
		case indent == 6 && strings.HasPrefix(text, "x-troth-roles:"):
			list := strings.Trim(strings.TrimSpace(strings.TrimPrefix(text, "x-troth-roles:")), "[]")
			for r := range strings.SplitSeq(list, ",") {
				role := Role(strings.TrimSpace(r))
				switch role {
				case RoleHost, RoleOperator, RoleEngine, RoleTenant, RolePublic:
				default:
					return nil, fmt.Errorf("cannot read roles: line %d: unknown role %q", n+1, role)
				}
				out[route] = append(out[route], role)
			}
		}
	}
	for route, roles := range out {
		if len(roles) == 0 {
			return nil, fmt.Errorf("cannot read roles: %s has none", route)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("cannot read roles: no operations")
	}
	return out, nil
}
