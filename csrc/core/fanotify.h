/* The fanotify dialect, for the core alone. */
#ifndef NF_FANOTIFY_H
#define NF_FANOTIFY_H

#include "transport.h"

extern const struct nf_transport_ops nf_fanotify;

int nf_fanotify_attach(struct nf_transport *t, int group);

#endif
