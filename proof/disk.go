package proof

// VariableStore is the target under which a statement lists, and a token pins, the file in which a UEFI firmware keeps its variables: whether it demands
// signatures, whose, and what it boots. No disk of a domain has this name. It is a writable disk of mode initial, whose digest stands at every link.
const VariableStore = "nvram"

// ChainDigest is the digest of a disk by the digests of its layers' contents, top first. A disk of one layer has its content's digest; one
// with layers below has Hash(LabelChain, …), a field for each layer. So no chain has the digest of a file, or of a longer or shorter chain.
// It is nil for no layer at all.
func ChainDigest(layers ...Digest) *Digest {
	switch len(layers) {
	case 0:
		return nil
	case 1:
		return &layers[0]
	}
	fields := make([][]byte, len(layers))
	for i := range layers {
		fields[i] = layers[i][:]
	}
	d := Hash(LabelChain, fields...)
	return &d
}
