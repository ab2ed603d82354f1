-- +goose Up
-- Every kind of thing the verifier remembers is a document with a revision; a change names the revision that it replaces.
CREATE TABLE documents (
    kind TEXT   NOT NULL,
    name TEXT   NOT NULL,
    rev  BIGINT NOT NULL,
    body TEXT   NOT NULL,
    PRIMARY KEY (kind, name)
);
-- What belongs to at most one document of all: an EK digest, an AK Name, the digest of a TLS key.
CREATE TABLE claims (
    claim TEXT NOT NULL PRIMARY KEY,
    kind  TEXT NOT NULL,
    name  TEXT NOT NULL
);
CREATE INDEX claims_owner ON claims (kind, name);

-- +goose Down
DROP TABLE claims;
DROP TABLE documents;
