# The server as a small image: see docs/containers.md. Needs BuildKit, which Docker has, or buildah.

FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# What cargo fetched and compiled stays in the caches between builds. It takes a source file for unchanged if it is
# older than what was made of it, which a file of another checkout may be: so all of them are touched.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    find crates -type f -exec touch {} + \
    && cargo build --release --locked \
    && install -D target/release/chatstore /image/usr/local/bin/chatstore \
    && install -d -m 0777 /image/data

# glibc, libgcc and certificates of the same Debian; no shell, no package manager.
FROM gcr.io/distroless/cc-debian12
LABEL org.opencontainers.image.title="Chatstore" \
      org.opencontainers.image.description="Keeps the conversations of AI chat applications" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /image /
# The default DATABASE_URL, sqlite:./data/chatstore.db, is in /data from here: mount a volume there. Any user may write
# to it, so the image runs as any.
WORKDIR /
USER 65532:65532
ENV HOST=0.0.0.0
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["chatstore", "health"]
ENTRYPOINT ["chatstore"]
CMD ["serve"]
