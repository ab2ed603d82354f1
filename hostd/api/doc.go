// Package api is the wire of troth-hostd: the OpenAPI 3.1 file, and the types, server interface and client that are generated from it.
// It promises only shapes. It trusts nothing: servers decode bodies with proof/strict, since generated decoders accept doubled and unknown keys.
// Who may call a route stands in the file under x-troth-roles, and nowhere else.
package api

import _ "embed"

//go:generate go tool -modfile=../../tools/go.mod oapi-codegen -config oapi.yaml openapi.yaml

// Spec is openapi.yaml as it was when the daemon was built; the daemon reads its table of roles from it.
//
//go:embed openapi.yaml
var Spec []byte
