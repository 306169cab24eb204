/* Loads the shared library named by its argument and runs the victim in it: a program that is no Rust itself. */
#include <dlfcn.h>
#include <stdio.h>

int main(int count, char **arguments)
{
	void *library = count == 2 ? dlopen(arguments[1], RTLD_NOW) : NULL;
	void (*run_victim)(void) = library ? (void (*)(void))dlsym(library, "run_victim") : NULL;

	if (!run_victim) {
		fprintf(stderr, "%s\n", count == 2 ? dlerror() : "name one library");
		return 1;
	}
	run_victim();
	return 0;
}
