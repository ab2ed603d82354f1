package lab

import (
	"fmt"
	"os"
)

// A program that imports this package is run again by it under one of these names. The check stands in an init function
// so that tests and commands need not remember to call anything.
const (
	initName  = "troth-lab-init"  // process 1 of a node: init.go
	proxyName = "troth-lab-proxy" // stand-in for a command that runs in a node: proxy.go
	tpmName   = "troth-lab-tpm"   // makes a host's TPM, inside a node: tpm.go
)

func init() {
	var err error
	var status int
	switch os.Args[0] {
	case initName:
		err = runInit(os.Args[1])
	case proxyName:
		status, err = runProxy(os.Args[1], os.Args[2:])
	case tpmName:
		err = prepareTPM(os.Args[1], os.Args[2])
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		status = max(status, 125)
	}
	os.Exit(status)
}
