// Package leak searches a running lab for a nonce and a secret that no file, log, command line, environment, definition or
// memory outside the guest may hold once a launch is over. It has tests only.
package leak
