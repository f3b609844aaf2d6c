module github.com/vitrine-vmi/vitrine

go 1.26
