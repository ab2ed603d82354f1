// Package api is the wire of troth-verifierd: openapi.yaml is the source, api.gen.go is made from it, and roles.go
// reads who may call what from the same file. It is a leaf: hostd and the command line import it for the client.
// It trusts nothing; handlers read bodies through proof/strict and not through these types' lenient decoding.
package api

//go:generate go tool -modfile=../../tools/go.mod oapi-codegen -config oapi.yaml openapi.yaml
