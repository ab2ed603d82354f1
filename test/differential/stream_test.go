package differential_test

import (
	"testing"
	"time"

	"troth/test/differential"
)

// TestStream: the same seed gives the same documents, another seed others; all are of a size that a test can take.
func TestStream(t *testing.T) {
	a, b := stream(t), stream(t)
	schema, err := differential.Load(differential.SchemaDir)
	if err != nil {
		t.Fatal(err)
	}
	seeds, err := differential.Seeds("../..")
	if err != nil {
		t.Fatal(err)
	}
	other, err := differential.NewStream(schema, seeds, seed(t)+1)
	if err != nil {
		t.Fatal(err)
	}
	kinds, same := map[differential.Kind]int{}, 0
	texts := map[string]bool{}
	for i := range uint64(2000) {
		begin := time.Now()
		doc, kind := a.Document(i)
		text := doc.String()
		if again, _ := b.Document(i); again.String() != text {
			t.Fatalf("document %d is another the second time:\n%s\n%s", i, text, again)
		}
		if d, _ := other.Document(i); d.String() == text {
			same++
		}
		kinds[kind]++
		texts[text] = true
		if len(text) > 64<<10 || time.Since(begin) > 5*time.Second {
			t.Errorf("document %d has %d bytes and took %s", i, len(text), time.Since(begin))
		}
	}
	if len(kinds) != int(differential.Kinds) || len(texts) < 1800 || same > 20 {
		t.Errorf("kinds %v, %d different documents, %d as of another seed", kinds, len(texts), same)
	}
}
