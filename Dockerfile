# The image of flux-token-refresher: one static binary and CA certificates, for a user that is not root.
#
#   docker build --build-arg VERSION=1.2.3 --build-arg REVISION=$(git rev-parse HEAD) --tag flux-token-refresher .
#
# With --platform linux/amd64,linux/arm64 it makes both, of which neither is emulated: Go compiles for the other one. Equal sources and
# arguments give an equal binary.
FROM --platform=$BUILDPLATFORM golang:1.26.8 AS build
WORKDIR /src
# As GOPROXY of the go command, for a build that may not reach Go's own.
ARG GOPROXY
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=unknown
ARG REVISION=unknown
# Another value than off (latest, v1.0.0, ...) takes Go's FIPS 140-3 module and turns it on.
ARG GOFIPS140=off
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH GOFIPS140=$GOFIPS140 \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION -X main.revision=$REVISION" \
    -o /flux-token-refresher ./cmd/flux-token-refresher

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="flux-token-refresher" \
      org.opencontainers.image.description="Keeps Microsoft Entra tokens fresh in the Secrets that Flux reads" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /flux-token-refresher /flux-token-refresher
USER 65532:65532
ENTRYPOINT ["/flux-token-refresher"]
