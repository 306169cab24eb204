/*
 * Loads the shared library named by its argument and runs the victim in it: a program that is no Rust itself. It says `ready` when
 * the library is there, waits for a line of input before it runs the victim, and for the end of its input before it ends.
 */
#include <dlfcn.h>
#include <stdio.h>

int main(int count, char **arguments)
{
	void *library = count == 2 ? dlopen(arguments[1], RTLD_NOW) : NULL;
	void (*run_victim)(void) = library ? (void (*)(void))dlsym(library, "run_victim") : NULL;
	int byte;

	if (!run_victim) {
		fprintf(stderr, "%s\n", count == 2 ? dlerror() : "name one library");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	while ((byte = getchar()) != '\n' && byte != EOF)
		;
	run_victim();
	while (getchar() != EOF)
		;
	return 0;
}
